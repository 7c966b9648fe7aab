"""The journal and what is derived from it: index, sidecars, rows, exports, and the tools that look after them."""
