"""Jobs: a file of questions in, a file of answers out, on a machine that may be taken away at any moment.

    input ──lines──▶ requests ──runner──▶ engine ──▶ results ──▶ ledger ──▶ output
                     media from paths,    media read by          each once,
                     data: URLs, hosts    worker processes       durably

Nothing is imported here: worker processes start from this package, and do without JAX.
"""
