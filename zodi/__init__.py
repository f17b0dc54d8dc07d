"""ZoDi: zero-shot domain adaptation with diffusion-based image transfer (Azuma, Matsui, Maki; arXiv 2403.13652).

The modules follow the paper: `datasets` -> `transfer` -> `adaptation` -> `evaluation` -> `tables`.
"""

__version__ = "0.1.0"
