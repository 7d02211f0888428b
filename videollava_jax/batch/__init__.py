"""Jobs: a file of questions in, a file of answers out, on a machine that may be lost at any moment.

    input ──lines──▶ requests ──runner──▶ engine ──▶ results ──▶ ledger ──▶ output
                     media from paths,    media read by          each once,
                     data: URLs, hosts    worker processes       durably

This file imports nothing, because worker processes import this package and must start without JAX.
"""
