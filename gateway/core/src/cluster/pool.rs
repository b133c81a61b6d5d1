//! Pool
