"""Networks that `zodi.segmentation` builds and no library has."""
