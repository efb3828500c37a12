"""Models and data sets of other programs: nnU-Net v2's in and out, ONNX out."""
