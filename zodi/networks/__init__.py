"""Networks that `zodi.segmentation` builds: the paper's, and today's by the libraries that have them."""
