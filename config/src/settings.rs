//! The settings file: a flat YAML map of the keys in [`isthmus_core::limits`].

use crate::Source;
use crate::diagnostic::{Diagnostic, Severity, nearest};
use crate::report::{Origin, Report};
use crate::resource::{duration, schema::shortened};
use crate::yaml::{Node, Path};
use isthmus_core::limits::{SettingValue, Settings};
use std::collections::HashSet;

/// Reads a settings file over what holds without it (`settings`). `file` is its name in diagnostics. Every problem is
/// reported at once.
pub fn load(text: &str, file: &str, mut settings: Settings) -> Result<Settings, Vec<Diagnostic>> {
    let sources = [Source {
        name: file.to_owned(),
        text: text.into(),
    }];
    let mut report = Report::new(&sources, false);
    for document in 0..report.len() {
        let origin = Origin {
            document,
            item: None,
            resource: "".into(),
        };
        let node = report.take(document);
        if !matches!(node, Node::Map(_) | Node::Null) {
            report.error(
                "wrong-type",
                &origin,
                &Path::Root,
                format!("expected a map of settings, found {}", node.describe()),
            );
        }
        let mut seen = HashSet::new();
        for (at, (key, value)) in node.entries().iter().enumerate() {
            let path = Path::Entry(&Path::Root, at, key);
            if !seen.insert(key) {
                let message = format!("the setting `{}` is written twice", shortened(key));
                report.add_key(Severity::Error, "duplicate-field", &origin, &path, message, None);
            }
            let value = match value {
                Node::Bool(flag) => SettingValue::Flag(*flag),
                Node::Int(number) if u64::try_from(*number).is_ok() => {
                    SettingValue::Number(u64::try_from(*number).unwrap_or(0))
                }
                Node::Text(text) => match duration(text) {
                    Ok(duration) => SettingValue::Duration(duration),
                    Err(_) => SettingValue::Text(text.clone()),
                },
                other => {
                    let message = format!("expected a value, found {}", other.describe());
                    report.error("wrong-type", &origin, &path, message);
                    continue;
                }
            };
            match settings.set(key, &value) {
                Some(Ok(())) => {}
                Some(Err(reason)) => report.error(
                    "bad-value",
                    &origin,
                    &path,
                    format!("`{}`: {reason}", shortened(key)),
                ),
                None => {
                    let name = if at < 100 {
                        nearest(key, Settings::NAMES.iter().copied())
                    } else {
                        None
                    };
                    let help = name.map(|name| format!("did you mean `{name}`?"));
                    let message = format!("unknown setting `{}`", shortened(key));
                    report.add_key(Severity::Error, "unknown-field", &origin, &path, message, help);
                }
            }
        }
    }
    let diagnostics = report.finish();
    if diagnostics.is_empty() {
        Ok(settings)
    } else {
        Err(diagnostics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn settings_are_read_by_their_names() {
        let text = "idleTimeout: 1m30s\nheaderCount: 50\npassServerHeader: true\npathNormalization: NONE\n";
        let settings = load(text, "s.yaml", Settings::default()).unwrap();
        assert_eq!(settings.idle_timeout, Duration::from_secs(90));
        assert_eq!(settings.header_count, 50);
        assert!(settings.pass_server_header);
        assert_eq!(load("", "s.yaml", Settings::default()), Ok(Settings::default()));
    }

    #[test]
    fn every_mistake_is_reported_with_its_place() {
        let found = load(
            "# c\nidleTimeot: 1s\nheaderCount: many\nheaderCount: -1\n",
            "s.yaml",
            Settings::default(),
        )
        .unwrap_err();
        let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(
            lines[0].starts_with("s.yaml:2:1: error[unknown-field]"),
            "{lines:?}"
        );
        assert_eq!(found[0].help.as_deref(), Some("did you mean `idleTimeout`?"));
        assert!(lines[1].starts_with("s.yaml:3:14: error[bad-value]"), "{lines:?}");
        assert!(
            lines[2].starts_with("s.yaml:4:1: error[duplicate-field]"),
            "{lines:?}"
        );
        assert!(
            lines[3].starts_with("s.yaml:4:14: error[wrong-type]"),
            "{lines:?}"
        );
        assert!(load("- a", "s.yaml", Settings::default()).is_err());
    }
}
