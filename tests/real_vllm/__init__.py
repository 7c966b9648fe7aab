"""The engine against a real vLLM on a CPU: `python -m tests.real_vllm`. Not part of the gate; see docs/real-vllm.md."""
