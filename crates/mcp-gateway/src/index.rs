//! The lists of all servers as one: which server a name belongs to, and under which name clients see it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use rmcp::model::{Prompt, Resource, ResourceTemplate, Tool};

/// What one server offers.
#[derive(Default)]
pub(crate) struct Names {
    pub(crate) tools: Vec<Tool>,
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) resources: Vec<Resource>,
    pub(crate) templates: Vec<ResourceTemplate>,
    pub(crate) completions: bool,
}

/// What all servers offer, under names that are unique.
#[derive(Default)]
pub(crate) struct Index {
    pub(crate) tools: Vec<Tool>,
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) resources: Vec<Resource>,
    pub(crate) templates: Vec<ResourceTemplate>,
    tool_owners: HashMap<String, (usize, String)>,
    prompt_owners: HashMap<String, (usize, String)>,
    resource_owners: HashMap<String, usize>,
    template_owners: HashMap<String, usize>,
}

impl Index {
    /// Puts the servers' lists together, in the order of the configuration. Of two equal tool or prompt names the later one gets its server's
    /// name in front. An address of a resource cannot be changed: the first server keeps it.
    pub(crate) fn build<'a>(servers: impl Iterator<Item = (&'a str, Arc<Names>)>) -> Self {
        let mut index = Self::default();
        for (number, (server, names)) in servers.enumerate() {
            for tool in &names.tools {
                let Some(name) = free_name(&index.tool_owners, server, &tool.name) else { continue };
                index.tool_owners.insert(name.clone(), (number, tool.name.to_string()));
                let mut tool = tool.clone();
                tool.name = Cow::Owned(name);
                index.tools.push(tool);
            }
            for prompt in &names.prompts {
                let Some(name) = free_name(&index.prompt_owners, server, &prompt.name) else { continue };
                index.prompt_owners.insert(name.clone(), (number, prompt.name.clone()));
                let mut prompt = prompt.clone();
                prompt.name = name;
                index.prompts.push(prompt);
            }
            for resource in &names.resources {
                if !index.resource_owners.contains_key(&resource.uri) {
                    index.resource_owners.insert(resource.uri.clone(), number);
                    index.resources.push(resource.clone());
                }
            }
            for template in &names.templates {
                if !index.template_owners.contains_key(&template.uri_template) {
                    index.template_owners.insert(template.uri_template.clone(), number);
                    index.templates.push(template.clone());
                }
            }
        }
        index
    }

    /// The server of a tool, and the server's own name for it.
    pub(crate) fn tool(&self, name: &str) -> Option<(usize, &str)> {
        self.tool_owners.get(name).map(|(server, own)| (*server, own.as_str()))
    }

    /// The server of a prompt, and the server's own name for it.
    pub(crate) fn prompt(&self, name: &str) -> Option<(usize, &str)> {
        self.prompt_owners.get(name).map(|(server, own)| (*server, own.as_str()))
    }

    /// The server of a resource: the one that lists it, else the one with the template whose beginning fits best.
    pub(crate) fn resource(&self, uri: &str) -> Option<usize> {
        let beginning = |template: &str| template.split('{').next().unwrap_or_default().len();
        let fits = |template: &&String| uri.starts_with(&template[..beginning(template)]);
        self.resource_owners.get(uri).copied().or_else(|| {
            let best = self.template_owners.keys().filter(fits).max_by_key(|template| beginning(template))?;
            self.template_owners.get(best).copied()
        })
    }

    /// The server of a template of resources.
    pub(crate) fn template(&self, template: &str) -> Option<usize> {
        self.template_owners.get(template).copied().or_else(|| self.resource(template))
    }
}

fn free_name(taken: &HashMap<String, (usize, String)>, server: &str, name: &str) -> Option<String> {
    if !taken.contains_key(name) {
        return Some(name.to_owned());
    }
    let server = server.strip_prefix("github/").unwrap_or(server);
    let server: String =
        server.chars().map(|one| if one.is_ascii_alphanumeric() { one } else { '_' }).collect();
    let longer = format!("{server}_{name}");
    if taken.contains_key(&longer) {
        tracing::warn!(server, name, "has a name twice; the second is left out");
        return None;
    }
    tracing::warn!(server, name, "another server has this name; it becomes {longer}");
    Some(longer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(tools: &[&str], templates: &[&str]) -> Arc<Names> {
        let tools = tools.iter().map(|name| Tool::new((*name).to_owned(), "", Arc::default())).collect();
        let templates = templates.iter().map(|uri| ResourceTemplate::new(*uri, "name")).collect();
        Arc::new(Names { tools, templates, ..Names::default() })
    }

    #[test]
    fn later_equal_names_get_their_server_in_front() {
        let servers =
            [("first", names(&["list", "get"], &[])), ("github/a/b.c", names(&["list", "list"], &[]))];
        let index = Index::build(servers.into_iter());
        let all: Vec<&str> = index.tools.iter().map(|tool| tool.name.as_ref()).collect();
        assert_eq!(all, ["list", "get", "a_b_c_list"]);
        assert_eq!(index.tool("list"), Some((0, "list")));
        assert_eq!(index.tool("a_b_c_list"), Some((1, "list")));
        assert_eq!(index.tool("nothing"), None);
    }

    #[test]
    fn resources_belong_to_the_template_that_fits_best() {
        let servers = [
            ("first", names(&[], &["file:///{path}"])),
            ("second", names(&[], &["file:///notes/{name}", "memo://{name}"])),
        ];
        let index = Index::build(servers.into_iter());
        assert_eq!(index.resource("file:///etc/hosts"), Some(0));
        assert_eq!(index.resource("file:///notes/one"), Some(1));
        assert_eq!(index.resource("other://one"), None);
    }
}
