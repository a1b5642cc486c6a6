"""How severe a server log message is."""

from .engine import ByLabel, half, make_job

_TRAIN = half(
    {
        "stamp": "2026-01-1~ 1~:2~:0~ worker-~ | 2026-02-1~ 0~:1~:4~ gateway-~ | 2026-03-2~ 20:5~ node-~~ | 2025-12-1~ 1~:0~ api-~"
        " | 2025-11-2~ 0~:3~ broker-~ | 2026-01-2~ 0~:0~ proxy-~ | 2025-10-2~ 1~:4~ cron-~ | 2025-09-1~ 1~:1~ job-~",
        "svc": "user-service | database | session cache | mail queue | scheduler | storage backend | auth service | message broker"
        " | search index",
    },
    {
        "info": """
            {stamp} server started, connected to {svc}
            {stamp} {svc} started successfully
            {stamp} request to {svc} completed with status 200
            {stamp} {svc} listening on port 80~~
            {stamp} job for {svc} finished in ~~ seconds
            {stamp} new connection accepted by {svc}
            {stamp} configuration loaded, {svc} ready
            {stamp} {svc} shut down gracefully
            {stamp} user logged in through {svc}
            {stamp} backup of {svc} completed successfully
        """,
        "warning": """
            {stamp} disk usage of {svc} is high at 8~ percent
            {stamp} {svc} is slow, response took ~~~~ ms
            {stamp} deprecated option used by {svc}
            {stamp} retrying {svc}, attempt ~ of 9
            {stamp} memory of {svc} is nearing its limit
            {stamp} certificate of {svc} expires soon
            {stamp} queue of {svc} is almost full
            {stamp} high latency detected on {svc}
            {stamp} {svc} is running low on free space
            {stamp} rate limit of {svc} is close, throttling
        """,
        "error": """
            {stamp} failed to connect to {svc}: connection refused
            {stamp} {svc} crashed with unhandled exception
            {stamp} could not write to {svc}, permission denied
            {stamp} request to {svc} failed with status 500
            {stamp} fatal: {svc} is out of memory
            {stamp} {svc} transaction aborted, rollback failed
            {stamp} unable to reach {svc}, connection lost
            {stamp} {svc} terminated unexpectedly, exit code 1
            {stamp} authentication to {svc} failed
            {stamp} corrupt data in {svc}, cannot read file
        """,
        "debug": """
            {stamp} entering function handle() in {svc}
            {stamp} dumping variables of {svc}: x=~~
            {stamp} {svc} trace: step ~ returned value ~~
            {stamp} parsed ~~ tokens for {svc}, state=open
            {stamp} raw payload from {svc}: id=~~~
            {stamp} {svc} loop iteration ~~, counter=~~
            {stamp} {svc} cache lookup key=~~~ hit=true
            {stamp} calling method of {svc} with args (~, ~)
            {stamp} leaving function init() of {svc}
            {stamp} sql query for {svc} built: params=~~
        """,
    },
)

_TEST = half(
    {
        "time": "2026-04-1~ 1~:3~ runner-~ | 2026-05-2~ 0~:4~ shard-~ | 2026-06-2~ 21:1~ agent-~ | 2026-04-2~ 0~:5~ replica-~"
        " | 2026-05-1~ 1~:2~ edge-~",
        "unit": "billing service | file store | event stream | token server | image worker | config server",
    },
    {
        "info": """
            {time} {unit} is started and ready
            {time} successfully connected to {unit}
            {time} task for {unit} completed in ~ seconds
            {time} {unit} now listening on port 90~~
            {time} request handled by {unit}, status 201
        """,
        "warning": """
            {time} {unit} responds slowly, latency ~~~~ ms
            {time} disk space for {unit} is low
            {time} {unit} memory usage is high, 9~ percent
            {time} {unit} uses a deprecated setting
            {time} will retry {unit}, queue nearly full
        """,
        "error": """
            {time} {unit} failed with exception
            {time} connection to {unit} refused, cannot connect
            {time} {unit} crashed, exit code 2
            {time} unable to write file to {unit}: denied
            {time} request failed, {unit} returned status 503
        """,
        "debug": """
            {time} entering method run() of {unit}
            {time} {unit} variable dump: y=~~ state=idle
            {time} trace {unit}: value=~~ counter=~
            {time} {unit} function parse() called with args (~~)
            {time} {unit} raw message payload: key=~~
        """,
    },
)

JOB = make_job(
    name="log_severity",
    domain="data",
    specialization="tool",
    tags=("log", "server", "operations"),
    description="Names the severity of a server log message.",
    table=ByLabel(_TRAIN, _TEST),
)
