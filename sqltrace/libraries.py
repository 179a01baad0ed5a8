"""Which installed packages are not the application, even where that is itself installed: names of modules."""

from typing import Final

# Never an answer, even where the application itself is installed in
# site-packages: a statement passes through these whoever asked for it.
INFRASTRUCTURE: Final = frozenset(
    "sqlalchemy sqlmodel greenlet anyio trio starlette fastapi uvicorn uvloop hypercorn granian"
    " gunicorn asgiref a2wsgi aiosqlite asyncpg psycopg psycopg_pool psycopg2 pymysql aiomysql"
    " asyncmy MySQLdb click typer pytest _pytest pluggy pytest_asyncio pydantic jinja2 opentelemetry logfire".split()
)

# They call SQLAlchemy or the application, compute or wait, on behalf of others. An application that is itself
# installed goes before them; where there is nobody else, as in a router of theirs, the line is theirs.
HELPERS: Final = frozenset(
    "advanced_alchemy aiobotocore aiocache aiodataloader aiohttp aioinject alembic apscheduler argon2 ariadne arq"
    " asgi_correlation_id asyncer backoff bcrypt boto3 botocore cachetools casbin casbin_async_sqlalchemy_adapter"
    " casbin_sqlalchemy_adapter celery ddtrace decorator dependency_injector dishka dogpile dramatiq elasticapm"
    " factory fastapi_async_sqlalchemy fastapi_cache fastapi_filter fastapi_injector fastapi_pagination fastapi_sqla"
    " fastapi_sqlalchemy fastapi_sqlalchemy_toolkit fastapi_users fastapi_users_db_sqlalchemy"
    " fastapi_users_db_sqlmodel fastapi_utils fastcrud geoalchemy2 graphene graphene_sqlalchemy graphql httpcore httpx"
    " injector jwt litestar marshmallow marshmallow_sqlalchemy newrelic numpy pandas passlib PIL polars polyfactory"
    " prometheus_fastapi_instrumentator pwdlib pyinstrument redis requests rq sentry_sdk slowapi sqladmin sqlakeyset"
    " sqlalchemy_continuum sqlalchemy_file sqlalchemy_filters sqlalchemy_mixins sqlalchemy_utils sse_starlette stamina"
    " starlette_admin starlette_context strawberry strawberry_sqlalchemy_mapper taskiq tenacity urllib3 wrapt".split()
)
