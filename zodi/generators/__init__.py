"""Generators: what stands between the method's equations and the networks of a checkpoint.

The method asks five things of a generator, whatever its family: `encode` and `decode` images, `embed` prompts, predict
(`predictor`), and a `schedule` with z_t = alpha_t z_0 + sigma_t eps, which splits predictions into eps_hat and z_0_hat.
"""
