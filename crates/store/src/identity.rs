//! Users, their membership in teams, and their access tokens.
//! Tokens are stored as hashes, so a copy of the database does not allow to act as a user. E-mail addresses are unique and compared as
//! they are written: `control` converts them to lower case.

use async_trait::async_trait;
use ids::{TeamId, TokenId, UserId};
use time::OffsetDateTime;

use crate::{Mask, StoreError};

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The user's id.
    pub id: UserId,
    /// The user's e-mail address, in lower case.
    pub email: String,
    /// When the user was created.
    pub created_at: OffsetDateTime,
}

/// An access token without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessToken {
    /// The record's id.
    pub id: TokenId,
    /// The user that owns it.
    pub user: UserId,
    /// Its name for people.
    pub name: String,
    /// `$sha256$` and the unpadded base64 of the SHA-256 of the decoded bytes.
    pub hash: String,
    /// The parts that may be shown.
    pub mask: Mask,
    /// When it was created.
    pub created_at: OffsetDateTime,
}

/// The part of a store with users and their tokens.
#[async_trait]
pub trait IdentityStore: Send + Sync + 'static {
    /// Adds a user. Fails with `Conflict` if the e-mail address is taken.
    async fn insert_user(&self, user: &User) -> Result<(), StoreError>;
    /// Returns all users, oldest first.
    async fn users(&self) -> Result<Vec<User>, StoreError>;
    /// Returns a user.
    async fn user(&self, id: UserId) -> Result<Option<User>, StoreError>;
    /// Adds a user to a team. Succeeds if the user is a member already.
    async fn put_member(&self, team: TeamId, user: UserId, at: OffsetDateTime) -> Result<(), StoreError>;
    /// Removes a user from a team; returns false if the user is not a member.
    async fn delete_member(&self, team: TeamId, user: UserId) -> Result<bool, StoreError>;
    /// Returns the teams of a user, in the order in which they were joined.
    async fn teams_of(&self, user: UserId) -> Result<Vec<TeamId>, StoreError>;

    /// Adds a token.
    async fn insert_token(&self, token: &AccessToken) -> Result<(), StoreError>;
    /// Returns the user that owns the token with this hash.
    async fn user_by_token(&self, hash: &str) -> Result<Option<User>, StoreError>;
    /// Removes a token, only of `user` if given; returns false if there is no such token.
    async fn delete_token(&self, user: Option<UserId>, id: TokenId) -> Result<bool, StoreError>;
}
