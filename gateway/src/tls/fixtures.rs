//! Certificates and handshakes for tests.
