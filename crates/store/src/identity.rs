//! People: who belongs to which team, and the tokens they show.
//! Tokens arrive as hashes; nothing here could be used to act as somebody.
//! E-mail addresses are unique and compared as written: whoever makes a user lower-cases them.

use async_trait::async_trait;
use ids::{TeamId, TokenId, UserId};
use time::OffsetDateTime;

use crate::{Mask, StoreError};

/// A person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Their id.
    pub id: UserId,
    /// Their e-mail address.
    pub email: String,
    /// When they were made known.
    pub created_at: OffsetDateTime,
}

/// An access token without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessToken {
    /// The record's id.
    pub id: TokenId,
    /// Whose it is.
    pub user: UserId,
    /// Its name for people.
    pub name: String,
    /// `$sha256$` and the unpadded base64 of the SHA-256 of the decoded bytes.
    pub hash: String,
    /// What may be shown of it.
    pub mask: Mask,
    /// When it was made.
    pub created_at: OffsetDateTime,
}

/// The part of a store that holds people.
#[async_trait]
pub trait IdentityStore: Send + Sync + 'static {
    /// Adds a user. `Conflict` when the address is taken.
    async fn insert_user(&self, user: &User) -> Result<(), StoreError>;
    /// All users, oldest first.
    async fn users(&self) -> Result<Vec<User>, StoreError>;
    /// One of them.
    async fn user(&self, id: UserId) -> Result<Option<User>, StoreError>;
    /// Makes a user a member of a team; once is enough.
    async fn put_member(&self, team: TeamId, user: UserId, at: OffsetDateTime) -> Result<(), StoreError>;
    /// Ends a membership; false when there was none.
    async fn delete_member(&self, team: TeamId, user: UserId) -> Result<bool, StoreError>;
    /// The teams of a user, the first joined first.
    async fn teams_of(&self, user: UserId) -> Result<Vec<TeamId>, StoreError>;

    /// Adds a token.
    async fn insert_token(&self, token: &AccessToken) -> Result<(), StoreError>;
    /// Whose token has this hash.
    async fn user_by_token(&self, hash: &str) -> Result<Option<User>, StoreError>;
    /// Removes a token, of this user if one is named; false when there is none.
    async fn delete_token(&self, user: Option<UserId>, id: TokenId) -> Result<bool, StoreError>;
}
