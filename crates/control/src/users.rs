//! Users: the teams that a user belongs to, and access tokens, which users present instead of a team's key. Access tokens are used
//! rarely, so each is looked up in the store by its hash. Signing in creates a new API key for each team of the
//! user, because the store has only hashes of existing keys, and deletes the keys that earlier sign-ins created.

use std::sync::Arc;

use ids::{TeamId, TokenId, UserId};
use store::{AccessToken, StoreError, Team, User, truncate_to_micros};
use time::OffsetDateTime;

use crate::keys::{hash_of, new_secret};
use crate::{AuthError, Control, ControlError};

/// Prefix of every access token.
pub const TOKEN_PREFIX: &str = "sk_e2b_";
/// Name of keys that signing in creates.
const LOGIN_KEY: &str = "CLI login/configure";
/// Maximum number of those keys per team.
const MAX_LOGIN_KEYS: usize = 20;

/// A newly created access token, with its secret, which is not stored.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// The whole token, prefix included.
    pub secret: String,
    /// Its record.
    pub record: AccessToken,
}

impl Control {
    /// Returns the user that an access token belongs to.
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

    /// Creates a user.
    ///
    /// # Errors
    /// The e-mail address is malformed or taken, or the store failed.
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

    /// Returns all users, oldest first.
    ///
    /// # Errors
    /// The store failed.
    pub async fn users(&self) -> Result<Vec<User>, ControlError> {
        Ok(self.store.users().await?)
    }

    /// Adds a user to a team.
    ///
    /// # Errors
    /// There is no such team or user, or the store failed.
    pub async fn add_member(&self, team: TeamId, user: UserId) -> Result<(), ControlError> {
        self.team(team).ok_or(ControlError::TeamNotFound)?;
        self.store.user(user).await?.ok_or(ControlError::NotFound("User not found"))?;
        Ok(self.store.put_member(team, user, OffsetDateTime::now_utc()).await?)
    }

    /// Removes a user from a team.
    ///
    /// # Errors
    /// The user is not in the team, or the store failed.
    pub async fn remove_member(&self, team: TeamId, user: UserId) -> Result<(), ControlError> {
        let was = self.store.delete_member(team, user).await?;
        if was { Ok(()) } else { Err(ControlError::NotFound("User not found in this team")) }
    }

    /// Returns a user's teams; the first is for calls that name none.
    ///
    /// # Errors
    /// The store failed.
    pub async fn teams_of(&self, user: UserId) -> Result<Vec<Arc<Team>>, ControlError> {
        let teams = self.store.teams_of(user).await?;
        Ok(teams.into_iter().filter_map(|id| self.team(id)).collect())
    }

    /// Returns a user's teams, each with a newly created key.
    ///
    /// # Errors
    /// The store failed.
    pub async fn sign_in(&self, user: UserId) -> Result<Vec<(Arc<Team>, String)>, ControlError> {
        let mut teams = Vec::new();
        for team in self.teams_of(user).await? {
            let keys = self.list_keys(team.id).await?;
            let old: Vec<_> = keys.iter().filter(|key| key.name == LOGIN_KEY).collect();
            for key in old.iter().take((old.len() + 1).saturating_sub(MAX_LOGIN_KEYS)) {
                self.delete_key(team.id, key.id).await?;
            }
            let key = self.create_key(team.id, LOGIN_KEY).await?;
            teams.push((team, key.secret));
        }
        Ok(teams)
    }

    /// Creates an access token.
    ///
    /// # Errors
    /// There is no such user, or the store failed.
    pub async fn create_token(&self, user: UserId, name: &str) -> Result<NewToken, ControlError> {
        self.store.user(user).await?.ok_or(ControlError::NotFound("User not found"))?;
        let (secret, hash, mask) = new_secret(TOKEN_PREFIX);
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

    /// Deletes an access token: one of this user, or any without a user.
    ///
    /// # Errors
    /// No such token, or the store failed.
    pub async fn delete_token(&self, user: Option<UserId>, id: TokenId) -> Result<(), ControlError> {
        let was = self.store.delete_token(user, id).await?;
        if was { Ok(()) } else { Err(ControlError::NotFound("Access token not found")) }
    }
}
