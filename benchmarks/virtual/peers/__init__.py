"""The laws by which other routers choose, as contestants in virtual time.

They are laws, not programs: each has what its router knows, and decides at once. Left out for all of them:

- processor time,
- health checks and circuit breakers: a node that is down refuses a request, which then goes elsewhere,
- retries with a pause, queues and limits of the router,
- tokenizers: all but smg-least-load know a prompt's tokens.
"""
