"""What tests of several rooms share, one module for each kind of helper.

files               the repository's folder, JSON Lines written and read
clocks              a clock that a test turns by hand
loops               coroutines run as tests, on asyncio and on uvloop
processes           environments, ports and processes
commands            the `asyncsynth` command, as a process and inside this one
jobs, served        a pipeline and a fault server, each in a process of its own, that survive `kill -9` of the other
pages               code blocks of the documentation
values              values of every kind, and which of them are refused
models              a model without a server: a task is driven through its `Context`
exchanges           servers without sockets, under a `ServerPool`
requests            requests and answers as bytes
pipelines           small pipelines and the fault server that answers them
scripted_server     a server that answers as a function says; `copying_server` sends answers twice, `tls` speaks TLS
walking             records walked through a graph without a server
user_modules        users' pipeline files, imported as in a fresh process
journals, entries   journals, file systems that fail or forget, entries and run directories
simulation          a fleet in virtual time under the scheduler; `crashing` has servers that die of poison
batching            a job against one batching server in virtual time
vllm_site           folders of vLLM server files; `vllm_stand_in` and `embedded_stand_in` are the processes
"""
