"""The load generator: workloads in, measured requests out, reports and plots from those.

`workload`, `traces` and `prompts` plan (pure, seeded), `wire` writes a request, `driver` sends them, `records` is what
comes back (from live URLs, or from a simulator that fills the same records), `report`, `tables` and `plots` show it.
"""
