"""Speed and memory of kbert and other libraries; each module documents its comparison."""
