//! The account that nodes run under. It may do nothing, and its token is not mounted.

use k8s_openapi::api::core::v1::ServiceAccount;

use super::{ValidCache, metadata};

/// Name of the account: never that of an account a person may have made for the cache's clients.
pub(super) fn name(cache_name: &str) -> String {
    format!("{cache_name}-node")
}

/// Builds the account.
pub(super) fn build(cache: &ValidCache) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(&cache.identity, name(&cache.identity.name)),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}
