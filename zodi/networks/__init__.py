"""Networks that `zodi.segmentation` builds: the paper's own, and current ones from the libraries that have them."""
