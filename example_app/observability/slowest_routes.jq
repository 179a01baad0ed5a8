# Slowest routes by the time of building objects:  jq -n -r -f slowest_routes.jq app.jsonl
[inputs | select(.event == "request")]
| group_by(.["http.route"] // .["url.path"])
| map({
    route: (.[0]["http.route"] // .[0]["url.path"]),
    requests: length,
    objects_ms: (map(.["time.objects_ms"] // 0) | add * 1000 | round / 1000),
    slowest_ms: (map(.duration_ms) | max)
  })
| sort_by(-.objects_ms)
| ["route", "requests", "objects_ms", "slowest_ms"], (.[:10][] | [.route, .requests, .objects_ms, .slowest_ms])
| @tsv
