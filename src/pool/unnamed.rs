//! Types for the parameters of a statement that is not prepared.
//!
//! Where no statement is kept (`DB_STATEMENT_CACHE=0`, for poolers that hand every transaction to another server), the
//! parameters' types must go along with the statement: nobody has asked the server for them. A value knows which types it
//! can be, so the usual ones are tried in turn; the server converts from there as it does from `$1::type`.

use bytes::BytesMut;
use postgres::types::{ToSql, Type, WrongType};

/// The types tried, the one a Rust value most naturally is before the others that it can be.
#[rustfmt::skip]
const USUAL: [Type; 39] = [
    Type::BOOL, Type::INT8, Type::INT4, Type::INT2, Type::FLOAT8, Type::FLOAT4, Type::TEXT, Type::BYTEA,
    Type::TIMESTAMPTZ, Type::TIMESTAMP, Type::DATE, Type::TIME, Type::TIMETZ, Type::INTERVAL, Type::UUID, Type::JSONB,
    Type::JSON, Type::NUMERIC, Type::OID, Type::CHAR, Type::INET, Type::CIDR, Type::MACADDR,
    Type::BOOL_ARRAY, Type::INT8_ARRAY, Type::INT4_ARRAY, Type::INT2_ARRAY, Type::FLOAT8_ARRAY, Type::FLOAT4_ARRAY,
    Type::TEXT_ARRAY, Type::BYTEA_ARRAY, Type::TIMESTAMPTZ_ARRAY, Type::TIMESTAMP_ARRAY, Type::DATE_ARRAY,
    Type::UUID_ARRAY, Type::JSONB_ARRAY, Type::NUMERIC_ARRAY, Type::OID_ARRAY, Type::INET_ARRAY,
];

/// Each parameter with a type that it can be sent as. One that fits none is sent as text, which the driver then refuses with
/// an error that names the parameter.
pub(crate) fn with_types<'a>(
    params: &[&'a (dyn ToSql + Sync)],
) -> Vec<(&'a (dyn ToSql + Sync), Type)> {
    params
        .iter()
        .map(|param| (*param, usual_type(*param)))
        .collect()
}

fn usual_type(param: &(dyn ToSql + Sync)) -> Type {
    let mut scratch = BytesMut::new();
    let fits = |ty: &&Type| {
        scratch.clear();
        // Any other error is about the value, not the type.
        !matches!(param.to_sql_checked(ty, &mut scratch), Err(e) if e.is::<WrongType>())
    };
    USUAL.iter().find(fits).cloned().unwrap_or(Type::TEXT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_find_their_natural_types() {
        let rows: [(&(dyn ToSql + Sync), Type); 9] = [
            (&1i32, Type::INT4),
            (&1i64, Type::INT8),
            (&"x", Type::TEXT),
            (&Some("x"), Type::TEXT),
            (&None::<i16>, Type::INT2),
            (&true, Type::BOOL),
            (&vec![1u8], Type::BYTEA),
            (&std::time::SystemTime::UNIX_EPOCH, Type::TIMESTAMPTZ),
            (&vec!["a", "b"], Type::TEXT_ARRAY),
        ];
        for (value, ty) in rows {
            assert_eq!(usual_type(value), ty, "{value:?}");
        }
    }
}
