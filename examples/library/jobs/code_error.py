"""What kind of mistake an error line of a program points at."""

from .engine import ByLabel, half, make_job

_TRAIN = half(
    {
        "lib": "numpy | requests | pandas | flask | lodash | express | axios | yaml | django | boost",
        "file": "main.py | app.js | server.py | Main.java | utils.py | index.ts | parser.c | lib.rs",
        "line": "12 | 48 | 7 | 103 | 256 | 31 | 9 | 64",
        "word": "user | order | item | node | request | session | customer | token",
    },
    {
        "import": """
            {file}:{line} ModuleNotFoundError: No module named '{lib}'
            ImportError: cannot import name '{word}' from '{lib}' ({file})
            Error: Cannot find module '{lib}' required by {file}:{line}
            {file}:{line}: error: package {lib} does not exist
            {file}:{line} fatal error: {lib}.h: No such file or directory
            error[E0432]: unresolved import `{lib}` --> {file}:{line}
            Module not found: Can't resolve '{lib}' in {file}
            {file} line {line}: ImportError: No module named {lib}
            {file}:{line} error: can't find crate for `{lib}`
            java.lang.NoClassDefFoundError: {lib}/{word} at {file}:{line}
        """,
        "type": """
            {file}:{line} TypeError: unsupported operand type(s) for +: 'int' and 'str'
            {file}:{line}: error: incompatible types: String cannot be converted to int
            error[E0308]: mismatched types --> {file}:{line}
            TypeError: {word} must be str, not int ({file}:{line})
            {file}({line}): Type 'string' is not assignable to type 'number'
            {file}:{line} ClassCastException: {word} cannot be cast to Integer
            {file}:{line} TypeError: can only concatenate str (not "float") to str
            {file}:{line}: error: expected type float but {word} is list
            TypeError: {word} expected int, got dict at {file}:{line}
            {file}:{line}: invalid conversion from 'char*' to 'int' for {word}
        """,
        "index": """
            {file}:{line} IndexError: list index out of range
            ArrayIndexOutOfBoundsException: Index {line} out of bounds ({file})
            {file}: index out of bounds: the len is 3 but the index is {line}
            {file}:{line} RangeError: Invalid array index for {word}
            {file}:{line} IndexError: tuple index out of range in {word}
            {file}:{line} std::out_of_range: vector index too large for {word}
            {word} list position {line} is past the end, IndexError in {file}
            {file}:{line} IndexError: string index out of range
            panic: runtime error: index out of range [{line}] in {file}
            {file}:{line} array subscript is above array bounds of {word}
        """,
        "null": """
            {file}:{line} NullPointerException: {word} is null
            TypeError: Cannot read properties of null (reading '{word}') at {file}:{line}
            {file}:{line} AttributeError: 'NoneType' object has no attribute '{word}'
            {file}:{line} TypeError: Cannot read property '{word}' of undefined
            {file}:{line} null pointer dereference of {word}
            {file}:{line} called `Option::unwrap()` on a `None` value for {word}
            {file}:{line} Object reference not set, {word} was null
            {file}:{line} TypeError: 'NoneType' object is not subscriptable: {word}
            {word} is None and null value is not allowed ({file}:{line})
            {file}:{line} invalid memory address or nil pointer at {word}
        """,
        "syntax": """
            {file}:{line} SyntaxError: invalid syntax
            {file}:{line}: error: ';' expected after {word}
            {file}:{line} SyntaxError: Unexpected token '{'
            {file}:{line} IndentationError: unexpected indent before {word}
            {file}:{line} SyntaxError: unterminated string literal
            {file}:{line}: parse error, missing ')' near {word}
            {file}:{line} SyntaxError: unexpected end of input
            {file}:{line}: error: expected '}' at end of {word} block
            {file}:{line} SyntaxError: missing colon after {word}
            {file}:{line}: unbalanced parenthesis, syntax error at {word}
        """,
    },
)

_TEST = half(
    {
        "pack": "scipy | jinja | moment | torch | redis | webpack",
        "src": "run.py | client.js | Service.java | tool.cpp | core.rs",
        "row": "15 | 88 | 4 | 172 | 39",
        "name": "account | invoice | player | message | profile",
    },
    {
        "import": """
            {src}, line {row}: ModuleNotFoundError: module '{pack}' not found
            ImportError in {src}: failed to import {pack} at line {row}
            Cannot find package '{pack}' imported from {src}:{row}
            {src}:{row} unresolved import {pack}: no such module
            {src}:{row} could not import module {pack}
        """,
        "type": """
            {src}, line {row}: TypeError: expected str but got int for {name}
            {src}:{row} type mismatch: cannot convert string to int in {name}
            mismatched types in {src}:{row}, {name} is float, expected string
            {src}:{row} TypeError: unsupported type 'list' for {name}, int expected
            {src}:{row} argument of type bool is not assignable to type string ({name})
        """,
        "index": """
            {src}, line {row}: IndexError: {name} index out of range
            {src}:{row} index {row} is out of bounds for array {name}
            {src}:{row} array index out of bounds in {name}
            IndexError: pop index out of range of {name} list ({src}:{row})
            {src}:{row} list {name} index exceeds its bounds
        """,
        "null": """
            {src}, line {row}: NoneType has no attribute {name}
            NullPointerException in {src}:{row}: null {name}
            {src}:{row} cannot read {name} of null
            {src}:{row} {name} is undefined or null, pointer is nil
            {src}:{row} AttributeError: None value where {name} object was expected
        """,
        "syntax": """
            {src}, line {row}: SyntaxError: unexpected token near {name}
            {src}:{row} syntax error: missing bracket after {name}
            SyntaxError in {src}:{row}: expected ';' before {name}
            {src}:{row} SyntaxError: invalid syntax, missing quote at {name}
            {src}:{row} unexpected indent or missing parenthesis, parse error
        """,
    },
)

JOB = make_job(
    name="code_error",
    domain="code",
    specialization="tool",
    tags=("code", "error", "traceback"),
    description="Names the kind of mistake behind an error line of a program.",
    table=ByLabel(_TRAIN, _TEST),
)
