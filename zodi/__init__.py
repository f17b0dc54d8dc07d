"""ZoDi: zero-shot domain adaptation with diffusion-based image transfer (Azuma, Matsui, Maki; arXiv 2403.13652).

The method is the modules of this folder. In reading order, from what goes in to what comes out:

- `domains`, `rows`, `labels`, `datasets`: the vocabulary. A domain is a prompt and a strength; a row is a way to train.
- `diffusion`, `sampling`: a latent diffusion model with a layout ControlNet, and ways to draw with it (Section 3.1).
- `transfer`, `transfer_folder`, `photometric`: images to another domain, one batch or a whole folder; the baseline.
- `segmentation`, `adaptation`: networks, and their training on pairs of images (Section 3.2).
- `evaluation`, `estimation`: mIoU where there are labels, and an estimate of it where there are no images (Section 4).
- `experiment`: all of it for one row of the tables, from a data set folder to a record.

Around it: `zodi.support` is what any project needs, `zodi.networks` holds the networks, `zodi.generators` the families
of diffusion models behind one interface, `zodi.tools` what people do with the method, `zodi.miniature` the world that
it is shown in, and `zodi.studies` what we measure. Imports go one way: studies -> miniature -> tools -> method ->
generators -> networks -> support.
"""

__version__ = "0.1.0"
