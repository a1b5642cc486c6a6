"""Which programming language a snippet is written in."""

from .engine import ByLabel, half, make_job

_TRAIN = half(
    {
        "var": "total | users | index | items | price | result | counter | buffer | name | config",
        "func": "load_data | run_task | get_user | parse_line | send_mail | compute | update_cache | read_input | check_key | build_tree",
        "table": "orders | customers | products | invoices | employees | sessions | payments | books | students | events",
    },
    {
        "python": """
            def {func}({var}): return {var} + 1
            for {var} in range(10): print({var})
            import os; {var} = os.getcwd(); {func}({var})
            with open({var}) as f: {func}(f.read())
            {var} = [x for x in {func}() if x is not None]
            if {var} is None: raise ValueError("{func}")
            class {table}: def __init__(self, {var}): self.{var} = {var}
            elif len({var}) > 3: {func}(self)
            try: {func}({var}) except KeyError: pass
            lambda {var}: {var}.strip().lower() or None
            from {table} import {func}
        """,
        "javascript": """
            const {var} = document.getElementById("{table}");
            function {func}({var}) { return {var} + 1; }
            let {var} = await fetch("/{table}"); console.log({var});
            {table}.map({var} => {var}.id);
            console.log({func}({var}));
            var {var} = JSON.parse({table}); {func}({var});
            if ({var} === undefined) { {func}(); }
            export default async function {func}({var}) {}
            {table}.forEach(({var}) => { {func}({var}); });
            module.exports = { {func}, {var} };
            const {func} = async ({var}) => { return null; };
        """,
        "sql": """
            SELECT {var} FROM {table} WHERE id = 5;
            INSERT INTO {table} ({var}) VALUES (3);
            UPDATE {table} SET {var} = 0 WHERE id = 7;
            DELETE FROM {table} WHERE {var} IS NULL;
            SELECT COUNT(*) FROM {table} GROUP BY {var};
            CREATE TABLE {table} (id INT, {var} TEXT);
            ALTER TABLE {table} ADD COLUMN {var} VARCHAR(20);
            SELECT {var} FROM {table} ORDER BY {var} DESC LIMIT 10;
            SELECT * FROM {table} t JOIN log l ON t.id = l.{var};
            DROP INDEX {var} ON {table};
        """,
        "rust": """
            fn {func}({var}: &str) -> String { {var}.to_string() }
            let mut {var}: Vec<u32> = Vec::new();
            println!("{}", {func}({var}));
            match {func}({var}) { Ok(v) => v, Err(e) => panic!("{}", e) }
            impl {table} { pub fn {func}(&self) -> i32 { 0 } }
            let {var} = {func}().unwrap();
            pub struct {table} { {var}: u64 }
            use std::collections::HashMap; let {var} = HashMap::new();
            if let Some({var}) = {func}() { return; }
            let {var}: Option<usize> = {func}(&mut x)?;
        """,
        "bash": """
            #!/bin/bash echo "${var}" | grep {table}
            for {var} in *.txt; do echo "${var}"; done
            if [ -f "${var}" ]; then rm -rf {table}; fi
            export {var}=$(cat {table}.log | wc -l)
            sudo chmod +x {func}.sh && ./{func}.sh
            {func}() { local {var}=$1; echo "$@"; }
            find . -name "{table}*" | xargs rm
            while read {var}; do {func} $1; done < {table}.txt
            cat {table}.txt | cut -f 2 | sort | uniq -c
            cd /var/{table} && ls -la | tail -n 5; exit 1
            tar -xzf {table}.tar.gz && mkdir -p $HOME/{var}
        """,
    },
)

_TEST = half(
    {
        "value": "score | rows | token | width | path | queue",
        "call": "save_file | find_match | draw_box | merge_all | get_token | sum_up",
        "store": "accounts | movies | tickets | cities | messages | teams",
    },
    {
        "python": """
            def {call}(self, {value}=None): return {value}
            for {value} in {store}: print({call}({value}))
            import json; {value} = json.loads({call}())
            {value} = {x: None for x in range(5)} or {call}()
            if {value} not in {store}: raise KeyError({value})
        """,
        "javascript": """
            const {value} = {store}.filter(x => x !== null);
            function {call}() { console.log({value}); }
            let {value} = await {call}(); return {value}.length;
            document.querySelector("{store}").onclick = () => {call}({value});
            if (typeof {value} === "string") { {call}({value}); }
        """,
        "sql": """
            SELECT id, {value} FROM {store} WHERE {value} > 10;
            INSERT INTO {store} (id, {value}) VALUES (1, 2);
            UPDATE {store} SET {value} = {value} + 1;
            SELECT MAX({value}) FROM {store} GROUP BY id;
            DELETE FROM {store} WHERE {value} = 0;
        """,
        "rust": """
            pub fn {call}({value}: &mut Vec<i32>) -> bool { true }
            let mut {value} = String::new(); {call}(&{value});
            match {value} { Some(x) => {call}(x), None => 0 }
            println!("{:?}", {value}.iter().collect::<Vec<u8>>());
            let {value}: u32 = {call}().unwrap();
        """,
        "bash": """
            for {value} in $(ls {store}); do echo ${value}; done
            if [ -d "{store}" ]; then echo "${value}"; fi
            export {value}=$(grep -c error {store}.log)
            cat {store}.csv | cut -d, -f1 | sort | head
            sudo mkdir -p /opt/{store} && chmod 755 {call}.sh
        """,
    },
)

JOB = make_job(
    name="code_language",
    domain="code",
    specialization="language",
    tags=("code", "snippet", "programming"),
    description="Names the programming language of a snippet.",
    table=ByLabel(_TRAIN, _TEST),
)
