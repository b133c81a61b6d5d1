//! `isthmus help`: commands, and topics that are no command.

use super::print;
use isthmus_core::limits::Settings;
use std::process::ExitCode;

pub(super) fn run(topic: Option<&str>, filter: Option<&str>) -> ExitCode {
    let mut cli = super::command();
    cli.build();
    match topic {
        None => print(&cli.render_long_help().to_string()),
        Some("settings") => print(&settings()),
        Some("mesh-config") => print(&listed(&isthmus_config::mesh_fields(), "")),
        Some("fields") => {
            let mut all = isthmus_config::fields();
            all.extend(isthmus_config::own_fields());
            print(&listed(&all, filter.unwrap_or("")));
        }
        Some(name) => match cli.find_subcommand_mut(name) {
            Some(command) => print(&command.render_long_help().to_string()),
            None => {
                let error = cli.error(
                    clap::error::ErrorKind::InvalidSubcommand,
                    format!("no help for `{name}`"),
                );
                let _closed = error.print();
                return ExitCode::from(2);
            }
        },
    }
    ExitCode::SUCCESS
}

/// One line a field: kind, path, what it holds, what is done with it, and why when that is nothing.
fn listed(fields: &[isthmus_config::FieldInfo], filter: &str) -> String {
    let mut text = String::new();
    let wanted = filter.to_ascii_lowercase();
    for field in fields {
        let name = format!("{} {}", field.kind, field.path);
        if !name.to_ascii_lowercase().contains(&wanted) {
            continue;
        }
        let why = match field.status {
            isthmus_config::Status::WithoutEffect { why, .. } => format!(": {why}"),
            _ => String::new(),
        };
        text.push_str(&format!("{name}  ({})  {}{why}\n", field.holds, field.status));
    }
    text
}

fn settings() -> String {
    let mut text = String::from("The file of `--settings` is YAML, one `key: value` a line.\n");
    for setting in Settings::documentation() {
        let (name, default, expects, help) = (setting.name, setting.default, setting.expects, setting.help);
        text.push_str(&format!(
            "\n{name}: {default}\n    {help}\n    Takes {expects}.\n"
        ));
    }
    text
}
