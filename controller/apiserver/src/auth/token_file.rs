//! Static tokens: a CSV file of `token,user,uid[,"group1,group2"]`, read once at the start.

use super::user::{AUTHENTICATED, UserInfo};
use anyhow::{Context, bail};
use std::collections::HashMap;
use std::path::Path;

/// Its tokens are keys of the map, so it has no Debug.
#[derive(Default)]
pub struct TokenFile {
    users: HashMap<String, UserInfo>,
}

impl TokenFile {
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("reading the token file {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("in the token file {}", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut users = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let fields = split_csv(line);
            let [token, name, uid, rest @ ..] = fields.as_slice() else {
                bail!("line {}: token, user and uid are needed, {} fields found", index + 1, fields.len());
            };
            if token.is_empty() || name.is_empty() {
                bail!("line {}: token and user must not be empty", index + 1);
            }
            let mut user = UserInfo::new(name.clone(), []);
            user.uid = uid.clone();
            let groups = rest.first().map(String::as_str).unwrap_or_default();
            user.groups = groups.split(',').map(str::trim).filter(|g| !g.is_empty()).map(String::from).collect();
            user.groups.push(AUTHENTICATED.into());
            users.insert(token.clone(), user);
        }
        Ok(TokenFile { users })
    }

    pub fn user(&self, token: &str) -> Option<&UserInfo> {
        self.users.get(token)
    }
}

/// Fields of one line; a field in quotes may hold commas.
fn split_csv(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => {
                if let Some(last) = fields.last_mut() {
                    last.push(c);
                }
            }
        }
    }
    fields.iter().map(|f| f.trim().to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_users() {
        let file = TokenFile::parse("t1,alice,u1,\"devs,ops\"\n\nt2,bob,u2\n").unwrap();
        assert_eq!(file.user("t1").unwrap().groups, ["devs", "ops", "system:authenticated"]);
        assert_eq!(file.user("t2").unwrap().uid, "u2");
        assert!(file.user("t3").is_none());
        assert!(TokenFile::parse("t1,alice\n").err().unwrap().to_string().starts_with("line 1:"));
    }
}
