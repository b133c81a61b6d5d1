//! Making a connection to an endpoint.

use super::{Connection, Open};
use crate::io::buffer::Pool;
use crate::io::h1::MessageReader;
use crate::io::stream::Stream;
use isthmus_core::limits::MessageLimits;
use isthmus_core::reply::Cause;
use isthmus_core::shared::Permit;
use std::net::SocketAddr;
use std::time::Duration;

/// Connects within `timeout`. The permit is given back when it fails.
pub async fn connect(
    address: SocketAddr,
    timeout: Duration,
    permit: Permit,
    pool: &Pool,
    limits: MessageLimits,
    open: Open,
) -> Result<Box<Connection>, Cause> {
    match Stream::connect(address, timeout).await {
        Ok(stream) => {
            let reader = MessageReader::new(pool, limits);
            Ok(Box::new(Connection {
                stream,
                reader,
                address,
                requests: 0,
                is_doubtful: false,
                permit,
                open,
            }))
        }
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => Err(Cause::ConnectTimeout),
        Err(_) => Err(Cause::ConnectFailed),
    }
}
