"""What a run costs and where its time goes: plans, traces, the compiled text, the input path."""
