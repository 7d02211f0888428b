"""The server's HTTP in a process of its own, so that it and the engine do not wait for each other's Python. No JAX.

    the command's process                                    the process of HTTP (`__main__`)
    Session ◀── EngineSide ◀── messages over a socket ──▶ RemoteSession ◀── the app of `serving.app`

`start` begins the other process, passes signals on to it, and ends with it.
"""
