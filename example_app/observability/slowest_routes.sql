-- Slowest routes by the time of building objects. DuckDB:  duckdb -c "SET VARIABLE log = 'app.jsonl'" -f slowest_routes.sql
SELECT
    coalesce("http.route", "url.path") AS route,
    count(*) AS requests,
    round(sum("time.objects_ms"), 3) AS objects_ms,
    round(sum("time.loop_wait_ms"), 3) AS loop_wait_ms,
    round(max(duration_ms), 3) AS slowest_ms,
    sum("sql.rows")::BIGINT AS fetched_rows
FROM read_json_auto(getvariable('log'), union_by_name = true)
WHERE event = 'request'
GROUP BY route
ORDER BY objects_ms DESC
LIMIT 10;
