//! Tables and types that change while the pool caches statements and types.

use super::support::{SECOND, database, eventually, pid};
use millpond::{Error, Pool};
use postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};
use std::time::{Duration, SystemTime};

/// A label of an enum. Like derived types, it accepts only an enum that has its labels, as far as
/// the driver knows: the newest label, or any of them.
#[derive(Debug)]
struct Label<const NEWEST: bool>(&'static str);

const ANY: bool = false;
const NEWEST: bool = true;

impl<const NEWEST: bool> ToSql for Label<NEWEST> {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut bytes::BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        let wanted = |label: &String| label == "new" || (!NEWEST && label == "old");
        matches!(ty.kind(), postgres::types::Kind::Enum(labels) if labels.iter().any(wanted))
    }

    to_sql_checked!();
}

struct Text(String);

impl<'a> FromSql<'a> for Text {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Text, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Text(String::from_utf8(raw.to_vec())?))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

fn both(db: &super::support::Database) -> [Pool; 2] {
    [256, 0].map(|cache| {
        let builder = db.pool().max_size(2).statement_cache(cache);
        builder.build().unwrap()
    })
}

#[test]
fn a_type_that_is_dropped_and_made_again_is_looked_up_again() {
    let db = database();
    let mut admin = db.admin();
    for pool in both(&db) {
        admin
            .batch_execute(
                "DROP TABLE IF EXISTS t; DROP TYPE IF EXISTS mood; \
                 CREATE TYPE mood AS ENUM ('old'); CREATE TABLE t (m mood)",
            )
            .unwrap();
        let insert = "INSERT INTO t VALUES ($1)";
        let cast = "SELECT $1::mood";
        pool.execute(insert, &[&Label::<ANY>("old")]).unwrap();
        pool.query(cast, &[&Label::<ANY>("old")]).unwrap();
        pool.query("SELECT m FROM t", &[]).unwrap();
        let again = "DROP TABLE t; DROP TYPE mood; CREATE TYPE mood AS ENUM ('new', 'old'); CREATE TABLE t (m mood)";
        admin.batch_execute(again).unwrap();
        pool.query(cast, &[&Label::<ANY>("new")]).unwrap();
        pool.execute(insert, &[&Label::<ANY>("new")]).unwrap();
        let rows = pool.query("SELECT m FROM t", &[]).unwrap();
        assert_eq!(rows[0].get::<_, Text>(0).0, "new");
        // Inside a transaction, the statement is retried.
        admin.batch_execute(again).unwrap();
        pool.transaction(|tx| {
            tx.query(cast, &[&Label::<ANY>("new")])?;
            tx.execute(insert, &[&Label::<ANY>("new")])?;
            tx.query("SELECT m FROM t", &[])
        })
        .unwrap();
    }
}

#[test]
fn a_label_and_an_attribute_that_are_added_are_known_to_who_sends_them() {
    let db = database();
    let mut admin = db.admin();
    for pool in both(&db) {
        admin
            .batch_execute("DROP TYPE IF EXISTS mood; CREATE TYPE mood AS ENUM ('old')")
            .unwrap();
        let cast = "SELECT $1::mood";
        pool.query(cast, &[&Label::<ANY>("old")]).unwrap();
        let mistaken = pool.query(cast, &[&Label::<NEWEST>("new")]).unwrap_err();
        assert!(matches!(mistaken, Error::Database { .. }), "{mistaken:?}");
        admin
            .batch_execute("ALTER TYPE mood ADD VALUE 'new'")
            .unwrap();
        pool.query(cast, &[&Label::<NEWEST>("new")]).unwrap();
        pool.transaction(|tx| tx.query(cast, &[&Label::<NEWEST>("new")]))
            .unwrap();
    }
}

/// The attributes of a composite, all integers: as many as the driver believes that the type has.
#[derive(Debug, PartialEq)]
struct Numbers(Vec<i32>);

fn attributes(ty: &Type) -> usize {
    match ty.kind() {
        postgres::types::Kind::Composite(fields) => fields.len(),
        other => panic!("{other:?}"),
    }
}

impl ToSql for Numbers {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut bytes::BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        let count = attributes(ty);
        out.extend_from_slice(&(count as i32).to_be_bytes());
        for number in &self.0[..count] {
            out.extend_from_slice(&Type::INT4.oid().to_be_bytes());
            out.extend_from_slice(&4i32.to_be_bytes());
            out.extend_from_slice(&number.to_be_bytes());
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Numbers {
    fn from_sql(
        ty: &Type,
        raw: &'a [u8],
    ) -> Result<Numbers, Box<dyn std::error::Error + Sync + Send>> {
        let count = i32::from_be_bytes(raw[..4].try_into()?) as usize;
        if count != attributes(ty) {
            return Err(format!("{count} attributes").into());
        }
        let number = |nth: usize| Ok(i32::from_be_bytes(raw[4 + 12 * nth + 8..][..4].try_into()?));
        Ok(Numbers(
            (0..count)
                .map(number)
                .collect::<Result<_, std::array::TryFromSliceError>>()?,
        ))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

#[test]
fn what_reads_and_writes_a_type_that_has_grown_works_at_the_next_call() {
    let db = database();
    let mut admin = db.admin();
    for pool in both(&db) {
        admin
            .batch_execute(
                "DROP TABLE IF EXISTS t; DROP TYPE IF EXISTS pair, mood; CREATE TYPE pair AS (a int); \
                 CREATE TYPE mood AS ENUM ('old'); CREATE TABLE t (p pair, ms mood[])",
            )
            .unwrap();
        let (insert, select) = (
            "INSERT INTO t VALUES ($1, '{old}')",
            "SELECT p, ms FROM t LIMIT 1",
        );
        pool.execute(insert, &[&Numbers(vec![1, 2])]).unwrap();
        let rows = pool.query(select, &[]).unwrap();
        assert_eq!(rows[0].get::<_, Numbers>(0), Numbers(vec![1]));
        admin
            .batch_execute(
                "ALTER TYPE pair ADD ATTRIBUTE b int CASCADE; ALTER TYPE mood ADD VALUE 'new'",
            )
            .unwrap();
        admin
            .batch_execute("UPDATE t SET p = ROW(3, 4), ms = '{new, NULL}'")
            .unwrap();
        pool.execute(insert, &[&Numbers(vec![5, 6])]).unwrap();
        // The first read may still return rows that cannot be decoded.
        pool.query(select, &[]).unwrap();
        for _ in 0..4 {
            let rows = pool.query(select, &[]).unwrap();
            assert_eq!(
                rows[0].try_get::<_, Numbers>(0).unwrap(),
                Numbers(vec![3, 4])
            );
            let labels = match rows[0].columns()[1].type_().kind() {
                postgres::types::Kind::Array(inner) => inner.kind().clone(),
                other => panic!("{other:?}"),
            };
            assert_eq!(
                labels,
                postgres::types::Kind::Enum(vec!["old".into(), "new".into()])
            );
        }
    }
}

#[test]
fn a_text_that_is_new_on_a_connection_that_knew_the_type_as_it_was_works_at_once() {
    let db = database();
    let mut admin = db.admin();
    for cache in [256, 0] {
        let pool = db
            .pool()
            .max_size(1)
            .statement_cache(cache)
            .build()
            .unwrap();
        admin
            .batch_execute(
                "DROP TABLE IF EXISTS t; DROP TYPE IF EXISTS pair; CREATE TYPE pair AS (a int); \
                 CREATE TABLE t (p pair); INSERT INTO t VALUES (ROW(1))",
            )
            .unwrap();
        pool.query("SELECT p FROM t", &[]).unwrap();
        let first = "INSERT INTO t VALUES ($1)";
        pool.execute(first, &[&Numbers(vec![1, 2])]).unwrap();
        admin
            .batch_execute("ALTER TYPE pair ADD ATTRIBUTE b int CASCADE")
            .unwrap();
        let lone = "INSERT INTO t SELECT $1";
        pool.execute(lone, &[&Numbers(vec![5, 6])]).unwrap();
        admin
            .batch_execute("ALTER TYPE pair ADD ATTRIBUTE c int CASCADE")
            .unwrap();
        let inside = "INSERT INTO t VALUES ($1), (NULL)";
        pool.transaction(|tx| tx.execute(inside, &[&Numbers(vec![7, 8, 9])]))
            .unwrap();
        let count = "SELECT count(*) FROM t";
        assert_eq!(pool.query_scalar::<i64>(count, &[]).unwrap(), 5);
        // What is wrong for another reason is said at once.
        let wrong = "INSERT INTO t VALUES ($1, 'too many')";
        let mut attempts = 0;
        let error = pool.transaction(|tx| {
            attempts += 1;
            tx.execute(wrong, &[&Numbers(vec![1, 2, 3])])
        });
        assert!(error.is_err() && attempts <= 2, "{attempts} {error:?}");
    }
}

#[test]
fn a_column_that_becomes_another_type_takes_the_new_values() {
    let db = database();
    let mut admin = db.admin();
    for pool in both(&db) {
        let table = "DROP TABLE IF EXISTS t; CREATE TABLE t (n int)";
        admin.batch_execute(table).unwrap();
        let (insert, select) = ("INSERT INTO t VALUES ($1)", "SELECT n FROM t WHERE n = $1");
        pool.execute(insert, &[&1i32]).unwrap();
        pool.query(select, &[&1i32]).unwrap();
        admin
            .batch_execute("ALTER TABLE t ALTER n TYPE text")
            .unwrap();
        pool.execute(insert, &[&"two"]).unwrap();
        assert_eq!(pool.query(select, &[&"1"]).unwrap().len(), 1);
        admin
            .batch_execute("ALTER TABLE t ALTER n TYPE int USING length(n)")
            .unwrap();
        // In a transaction the wrong value is never sent, so that a second attempt loses nothing.
        let mut runs = 0;
        pool.transaction(|tx| {
            runs += 1;
            tx.execute(insert, &[&4i32])
        })
        .unwrap();
        assert_eq!(runs, 1);
        // A caller's mistake is still an error, and costs no connection.
        let mistake = pool.execute(insert, &[&"three"]).unwrap_err();
        assert!(!mistake.is_retryable() && !mistake.is_outcome_unknown());
        assert_eq!(pool.query(select, &[&4i32]).unwrap().len(), 1);
    }
}

#[test]
fn each_tenants_schema_is_its_own_though_the_texts_are_the_same() {
    let db = database();
    db.admin()
        .batch_execute(
            "CREATE EXTENSION citext; \
             CREATE SCHEMA a; CREATE TABLE a.t (k text, n int); INSERT INTO a.t VALUES ('Key', 1); \
             CREATE SCHEMA b; CREATE TABLE b.t (k public.citext, n text); INSERT INTO b.t VALUES ('Key', 'one')",
        )
        .unwrap();
    for pool in both(&db) {
        let mut runs = 0;
        for round in 0..6 {
            let a = round % 2 == 0;
            pool.transaction(|tx| {
                runs += 1;
                match round % 3 {
                    0 => tx.batch_execute(&format!(
                        "SET LOCAL search_path = {}, public",
                        if a { "a" } else { "b" }
                    ))?,
                    _ => {
                        let sql = "SELECT set_config('search_path', $1, true)";
                        tx.query(sql, &[&(if a { "a, public" } else { "b, public" })])?;
                    }
                }
                let found = tx.query("SELECT n FROM t WHERE k = $1", &[&"KEY"])?;
                assert_eq!(
                    found.len(),
                    usize::from(!a),
                    "text tells case, citext does not"
                );
                let insert = "INSERT INTO t VALUES ('x', $1)";
                match a {
                    true => tx.execute(insert, &[&7i32])?,
                    false => tx.execute(insert, &[&"seven"])?,
                };
                // After a change behind a savepoint, `t` may be another table. When the savepoint
                // is rolled back, it is the first one again.
                let inner: Result<(), _> = tx.savepoint(|tx| {
                    tx.batch_execute(&format!(
                        "SET LOCAL search_path = {}, public",
                        if a { "b" } else { "a" }
                    ))?;
                    let found = tx.query("SELECT n FROM t WHERE k = $1", &[&"KEY"])?;
                    assert_eq!(found.len(), usize::from(a));
                    Err(Error::application("undone"))
                });
                assert!(inner.is_err());
                let found = tx.query("SELECT n FROM t WHERE k = $1", &[&"KEY"])?;
                assert_eq!(found.len(), usize::from(!a));
                Ok::<_, millpond::Error>(())
            })
            .unwrap();
        }
        assert_eq!(runs, 6, "nothing had to be repeated");
    }
}

#[test]
fn a_temporary_table_that_each_transaction_makes_anew_is_the_one_that_is_meant() {
    let db = database();
    for pool in both(&db) {
        for round in 0..4 {
            pool.transaction(|tx| {
                let (ty, made) = if round % 2 == 0 {
                    ("int", "1")
                } else {
                    ("text", "'one'")
                };
                tx.batch_execute(&format!(
                    "CREATE TEMP TABLE s (n {ty}) ON COMMIT DROP; INSERT INTO s VALUES ({made})"
                ))?;
                assert_eq!(tx.query("SELECT n FROM s", &[])?.len(), 1);
                tx.batch_execute(
                    "DROP TABLE s; CREATE TEMP TABLE s (n date, m int) ON COMMIT DROP",
                )?;
                assert_eq!(tx.query("SELECT n FROM s", &[])?.len(), 0);
                Ok::<_, millpond::Error>(())
            })
            .unwrap();
        }
    }
}

#[test]
fn a_temporary_table_hides_the_other_of_its_name_from_its_transaction_alone() {
    let db = database();
    db.admin()
        .batch_execute("CREATE TABLE t (n int); INSERT INTO t VALUES (1)")
        .unwrap();
    for pool in both(&db) {
        let all = "SELECT n FROM t";
        let one = |tx: &mut millpond::Transaction<'_>| -> millpond::Result<i32> {
            Ok(tx.query_one(all, &[])?.get(0))
        };
        for _ in 0..3 {
            pool.transaction(|tx| -> millpond::Result<_> {
                assert_eq!(one(tx)?, 1);
                tx.batch_execute("CREATE TEMP TABLE t ON COMMIT DROP AS SELECT 2 AS n")?;
                assert_eq!(one(tx)?, 2);
                tx.batch_execute("DROP TABLE pg_temp.t")?;
                assert_eq!(one(tx)?, 1);
                Ok(())
            })
            .unwrap();
            assert_eq!(pool.query(all, &[]).unwrap()[0].get::<_, i32>(0), 1);
        }
    }
}

#[test]
fn after_a_migration_no_transaction_fails_for_what_was_kept_before() {
    let db = database();
    let mut admin = db.admin();
    let pool = db.pool().max_size(4).min_idle(4).build().unwrap();
    eventually("all are there", || pool.stats().idle == 4);
    admin
        .batch_execute("CREATE TABLE t1 (n int); CREATE TABLE t2 (n int); CREATE TABLE t3 (n int); CREATE TABLE t4 (n int); CREATE TABLE t5 (n int)")
        .unwrap();
    let work = || {
        pool.transaction(|tx| -> millpond::Result<_> {
            for table in 1..=5 {
                tx.query(&format!("SELECT * FROM t{table}"), &[])?;
            }
            Ok(())
        })
    };
    // On every session.
    let held: Vec<_> = (0..3).map(|_| pool.get().unwrap()).collect();
    work().unwrap();
    drop(held);
    work().unwrap();
    for table in 1..=5 {
        admin
            .batch_execute(&format!("ALTER TABLE t{table} ADD COLUMN m text"))
            .unwrap();
    }
    let policy = millpond::RetryPolicy::default()
        .initial_delay(Duration::from_millis(1))
        .max_retries(5);
    let call = pool.with_policy(policy);
    call.transaction(|tx| -> millpond::Result<_> {
        for table in 1..=5 {
            tx.query(&format!("SELECT * FROM t{table}"), &[])?;
        }
        Ok(())
    })
    .unwrap();
    work().unwrap();
}

#[test]
fn values_are_of_the_servers_types_with_and_without_a_cache() {
    let db = database();
    db.admin()
        .batch_execute(
            "CREATE EXTENSION citext; CREATE TABLE t (k citext, at timestamp); INSERT INTO t VALUES ('Key', NULL)",
        )
        .unwrap();
    for pool in both(&db) {
        assert_eq!(
            pool.query("SELECT 1 FROM t WHERE k = $1", &[&"KEY"])
                .unwrap()
                .len(),
            1
        );
        let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000);
        pool.transaction(|tx| {
            tx.batch_execute("SET LOCAL TimeZone = 'Asia/Tokyo'")?;
            tx.execute("UPDATE t SET at = $1", &[&noon])
        })
        .unwrap();
        let seconds = "SELECT extract(epoch FROM at)::bigint FROM t";
        assert_eq!(
            pool.query(seconds, &[]).unwrap()[0].get::<_, i64>(0),
            1_900_000_000
        );
    }
}

#[test]
fn rows_that_nobody_wants_are_not_computed() {
    let db = database();
    let pool = db.pool().build().unwrap();
    for sql in [
        "SELECT generate_series(1, 1000000000), repeat('x', 1000)",
        "WITH s AS (SELECT $1::int8 AS first) SELECT generate_series(first, 1000000000) FROM s",
    ] {
        let mut seen = 0;
        let each = |_| {
            seen += 1;
            Ok(std::ops::ControlFlow::Break(()))
        };
        let mut each = each;
        let first = 1i64;
        let params: &[&(dyn ToSql + Sync)] = if sql.contains("$1") { &[&first] } else { &[] };
        // Within the statement's time limit. The transaction goes on and commits.
        let left = pool
            .with_policy(millpond::RetryPolicy::none())
            .transaction(|tx| {
                tx.query_each(sql, params, &mut each)?;
                tx.query("SELECT 1", &[])
            });
        assert_eq!(left.unwrap().len(), 1, "{sql}");
        assert_eq!(seen, 1);
    }
    // A result with more rows than can be under way at once is read to its end, and so is the
    // result of a statement that is no query.
    pool.transaction(|tx| {
        let mut sum = 0;
        tx.query_each(
            "SELECT i FROM generate_series(1, 1000) AS i",
            &[],
            |row| -> millpond::Result<_> {
                sum += row.try_get::<_, i32>(0)?;
                Ok(std::ops::ControlFlow::Continue(()))
            },
        )?;
        assert_eq!(sum, 500_500);
        let mut shown = 0;
        tx.query_each("SHOW ALL", &[], |_| {
            shown += 1;
            Ok(std::ops::ControlFlow::Continue(()))
        })?;
        assert!(shown > 100);
        Ok::<_, millpond::Error>(())
    })
    .unwrap();
}

#[test]
fn a_session_whose_buffers_have_grown_huge_is_closed_when_it_comes_back() {
    let db = database();
    let pool = db
        .pool()
        .max_size(1)
        .statement_timeout(20 * SECOND)
        .query_timeout(20 * SECOND)
        .build()
        .unwrap();
    let first = pid(&pool);
    pool.query("SELECT repeat('x', 1000000)", &[]).unwrap();
    assert_eq!(pid(&pool), first);
    pool.query("SELECT repeat('x', 40000000)", &[]).unwrap();
    eventually("another after a huge row", || pid(&pool) != first);
    let second = pid(&pool);
    let value = "x".repeat(40_000_000);
    let length = pool.query("SELECT length($1::text)", &[&value]).unwrap();
    assert_eq!(length[0].get::<_, i32>(0), 40_000_000);
    eventually("another after a huge parameter", || pid(&pool) != second);
}

#[test]
fn a_tenant_that_is_chosen_by_schema_or_role_has_its_own_tables_too() {
    let db = database();
    let tag = db.url.rsplit('_').next().unwrap().to_owned();
    let (a, b) = (format!("ten_a_{tag}"), format!("ten_b_{tag}"));
    db.admin()
        .batch_execute(&format!(
            "CREATE EXTENSION citext; CREATE ROLE {a}; CREATE ROLE {b}; \
             CREATE SCHEMA {a} AUTHORIZATION {a}; CREATE TABLE {a}.t (k text); INSERT INTO {a}.t VALUES ('Key'); \
             CREATE SCHEMA {b} AUTHORIZATION {b}; CREATE TABLE {b}.t (k public.citext); INSERT INTO {b}.t VALUES ('Key'); \
             GRANT ALL ON ALL TABLES IN SCHEMA {a} TO {a}; GRANT ALL ON ALL TABLES IN SCHEMA {b} TO {b}"
        ))
        .unwrap();
    type Choose = fn(&mut millpond::Transaction<'_>, &str) -> millpond::Result<()>;
    let ways: [Choose; 5] = [
        |tx, who| tx.batch_execute(&format!("SET LOCAL search_path = {who}, public")),
        |tx, who| {
            let path = format!("{who}, public");
            tx.query("SELECT set_config($1, $2, true)", &[&"search_path", &path])
                .map(drop)
        },
        |tx, who| tx.batch_execute(&format!("SET LOCAL ROLE {who}")),
        |tx, who| {
            tx.query("SELECT set_config('role', $1, true)", &[&who])
                .map(drop)
        },
        |tx, who| tx.batch_execute(&format!("SET LOCAL SESSION AUTHORIZATION {who}")),
    ];
    for pool in both(&db) {
        for (nth, choose) in ways.iter().enumerate() {
            for (who, found) in [(&a, 0), (&b, 1), (&a, 0), (&b, 1)] {
                let rows = pool
                    .transaction(|tx| {
                        choose(tx, who)?;
                        tx.query("SELECT 1 FROM t WHERE k = $1", &[&"KEY"])
                    })
                    .unwrap();
                assert_eq!(rows.len(), found, "way {nth}, {who}");
            }
        }
    }
    db.admin()
        .batch_execute(&format!(
            "DROP SCHEMA {a}, {b} CASCADE; DROP ROLE {a}; DROP ROLE {b}"
        ))
        .unwrap();
}

#[test]
fn a_transaction_with_what_was_kept_before_its_type_was_changed_is_repeated() {
    let db = database();
    let mut admin = db.admin();
    for pool in both(&db) {
        admin
            .batch_execute(
                "DROP TABLE IF EXISTS d; DROP TYPE IF EXISTS st; DROP TYPE IF EXISTS st_old; \
                 CREATE TYPE st AS ENUM ('new', 'old'); CREATE TABLE d (s st)",
            )
            .unwrap();
        let insert = "INSERT INTO d VALUES ($1)";
        pool.transaction(|tx| tx.execute(insert, &[&Label::<ANY>("old")]))
            .unwrap();
        admin
            .batch_execute(
                "ALTER TYPE st RENAME TO st_old; CREATE TYPE st AS ENUM ('new', 'old', 'newer'); \
                 ALTER TABLE d ALTER s TYPE st USING s::text::st",
            )
            .unwrap();
        for _ in 0..3 {
            pool.transaction(|tx| tx.execute(insert, &[&Label::<ANY>("new")]))
                .unwrap();
        }
    }
}

#[test]
fn borrowers_who_take_all_prepared_statements_away_cost_no_caller_its_call() {
    let db = database();
    db.admin()
        .batch_execute("CREATE TYPE ea AS ENUM ('x'); CREATE TYPE eb AS ENUM ('x'); CREATE TYPE ec AS ENUM ('x')")
        .unwrap();
    let pool = db.pool().max_size(6).min_idle(0).build().unwrap();
    let on_all = |sql: &str| {
        let mut all: Vec<_> = (0..6).map(|_| pool.get().unwrap()).collect();
        all.iter_mut()
            .for_each(|one| one.batch_execute(sql).unwrap());
    };
    let know_it = || {
        let mut all: Vec<_> = (0..6).map(|_| pool.get().unwrap()).collect();
        all.iter_mut()
            .for_each(|one| drop(one.query("SELECT 'x'::ea", &[]).unwrap()));
    };
    know_it();
    on_all("DISCARD ALL");
    let none = pool.with_policy(millpond::RetryPolicy::none());
    none.query("SELECT 'x'::eb", &[]).unwrap();
    none.transaction(|tx| tx.query("SELECT 'x'::ec", &[]))
        .unwrap();
    know_it();
    pool.execute("DEALLOCATE ALL", &[]).unwrap();
    none.transaction(|tx| tx.query("SELECT 'x'::ec", &[]))
        .unwrap();
}
