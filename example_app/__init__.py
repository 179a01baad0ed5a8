"""
The bookmarking service of the case, and a replay of the page load that made it slow.

Run it with `python -m example_app`. Read in this order: `tables`, `guilty` and `mended` (two mappings over them),
`queries` (what the endpoints ask), `sync_api` and `async_api` (the endpoints), `app` (where sqltrace comes in).
Apart from the case, `loading` has a page for each `lazy=`.
"""
