"""3D Cross-Pseudo Supervision for medical image segmentation (Huang et al., FLARE 2022)."""

__version__ = "0.1.0"
