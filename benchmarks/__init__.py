"""Speed and memory of kbert beside other libraries; each module says what it compares."""
