//! People: which teams they belong to, and the access tokens they show instead of a team's key.
//! A token is looked up by its hash in the store at every use: they are shown rarely.
//! Signing in makes keys, because kept ones cannot be shown; old ones of that kind go.

use std::sync::Arc;

use ids::{TeamId, TokenId, UserId};
use store::{AccessToken, StoreError, Team, User, truncate_to_micros};
use time::OffsetDateTime;

use crate::keys::{fresh_secret, hash_of};
use crate::{AuthError, Control, ControlError};

/// What every access token begins with.
pub const TOKEN_PREFIX: &str = "sk_e2b_";
/// Name of keys made by signing in.
const LOGIN_KEY: &str = "CLI login/configure";
/// So many of them are kept of each team, the newest.
const LOGIN_KEYS: usize = 20;

/// A freshly made access token: the only time its secret is known.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// The whole token, prefix included.
    pub secret: String,
    /// Its record.
    pub record: AccessToken,
}

impl Control {
    /// Whose access token this is.
    ///
    /// # Errors
    /// The token is malformed or unknown.
    pub async fn authenticate_user(&self, token: &str) -> Result<User, AuthError> {
        let hash = hash_of(TOKEN_PREFIX, token).map_err(|error| match error {
            AuthError::Malformed => AuthError::Provider,
            _ => AuthError::TokenFormat,
        })?;
        self.store.user_by_token(&hash).await?.ok_or(AuthError::TokenUnknown)
    }

    /// Makes a person known.
    ///
    /// # Errors
    /// The address is no e-mail address or is taken, or the store failed.
    pub async fn create_user(&self, email: &str) -> Result<User, ControlError> {
        let email = email.trim().to_lowercase();
        let well_formed =
            email.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty());
        if !well_formed || email.len() > 254 || email.chars().any(char::is_whitespace) {
            return Err(ControlError::Invalid("email must be an e-mail address".to_owned()));
        }
        let user =
            User { id: UserId::generate(), email, created_at: truncate_to_micros(OffsetDateTime::now_utc()) };
        match self.store.insert_user(&user).await {
            Ok(()) => Ok(user),
            Err(StoreError::Conflict(what)) => Err(ControlError::Conflict(format!("{what} exists already"))),
            Err(error) => Err(error.into()),
        }
    }

    /// All people, the first made known first.
    ///
    /// # Errors
    /// The store failed.
    pub async fn users(&self) -> Result<Vec<User>, ControlError> {
        Ok(self.store.users().await?)
    }

    /// Makes a person a member of a team.
    ///
    /// # Errors
    /// There is no such team or person, or the store failed.
    pub async fn add_member(&self, team: TeamId, user: UserId) -> Result<(), ControlError> {
        self.team(team).ok_or(ControlError::TeamNotFound)?;
        self.store.user(user).await?.ok_or(ControlError::NotFound("User not found"))?;
        Ok(self.store.put_member(team, user, OffsetDateTime::now_utc()).await?)
    }

    /// Ends a membership.
    ///
    /// # Errors
    /// There was none, or the store failed.
    pub async fn remove_member(&self, team: TeamId, user: UserId) -> Result<(), ControlError> {
        let was = self.store.delete_member(team, user).await?;
        if was { Ok(()) } else { Err(ControlError::NotFound("User not found in this team")) }
    }

    /// A person's teams; the first is the one meant when none is named.
    ///
    /// # Errors
    /// The store failed.
    pub async fn teams_of(&self, user: UserId) -> Result<Vec<Arc<Team>>, ControlError> {
        let teams = self.store.teams_of(user).await?;
        Ok(teams.into_iter().filter_map(|id| self.team(id)).collect())
    }

    /// A person's teams, each with a key made for the occasion.
    ///
    /// # Errors
    /// The store failed.
    pub async fn sign_in(&self, user: UserId) -> Result<Vec<(Arc<Team>, String)>, ControlError> {
        let mut teams = Vec::new();
        for team in self.teams_of(user).await? {
            let keys = self.list_keys(team.id).await?;
            let old: Vec<_> = keys.iter().filter(|key| key.name == LOGIN_KEY).collect();
            for key in old.iter().take((old.len() + 1).saturating_sub(LOGIN_KEYS)) {
                self.delete_key(team.id, key.id).await?;
            }
            let key = self.create_key(team.id, LOGIN_KEY).await?;
            teams.push((team, key.secret));
        }
        Ok(teams)
    }

    /// Makes an access token.
    ///
    /// # Errors
    /// There is no such person, or the store failed.
    pub async fn create_token(&self, user: UserId, name: &str) -> Result<NewToken, ControlError> {
        self.store.user(user).await?.ok_or(ControlError::NotFound("User not found"))?;
        let (secret, hash, mask) = fresh_secret(TOKEN_PREFIX);
        let record = AccessToken {
            id: TokenId::generate(),
            user,
            name: name.to_owned(),
            hash,
            mask,
            created_at: truncate_to_micros(OffsetDateTime::now_utc()),
        };
        self.store.insert_token(&record).await?;
        tracing::info!(token_id = %record.id, user_id = %user, "access token created");
        Ok(NewToken { secret, record })
    }

    /// Removes an access token; a person's own, or with the operator's right any.
    ///
    /// # Errors
    /// No such token, or the store failed.
    pub async fn delete_token(&self, user: Option<UserId>, id: TokenId) -> Result<(), ControlError> {
        let was = self.store.delete_token(user, id).await?;
        if was { Ok(()) } else { Err(ControlError::NotFound("Access token not found")) }
    }
}
