"""The embedding paths of a model as ONNX or OpenVINO graphs: faster on a CPU, and readable without torch."""
