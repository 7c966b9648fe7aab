"""vLLM servers on this machine: checked before they start, started, watched, restarted, drained."""
