"""MLPerf LoadGen against an ONNX file on a target: its scenarios, its accuracy mode, and the rate that a limit allows."""
