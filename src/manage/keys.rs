//! Keys: create, import, list, update.

use super::grant::invalid;
use super::{Manage, ManageError};
use crate::clock::Timestamp;
use crate::key::{Digest, EntityId, KeyId, KeyRecord, Mode, Token};
use crate::net::Networks;
use crate::secret::Secret;
use crate::store::{Action, KeyFilter, Record, Write};
use crate::ulid::Ulid;

/// Keys read from the store at a time.
const PAGE: usize = 1000;
/// The longest name, in characters.
const NAME_MAX: usize = 100;

/// A key to make.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// The entity's code.
    pub entity: String,
    pub name: String,
    pub mode: Mode,
    /// Either these or a preset.
    pub scopes: Vec<String>,
    pub preset: Option<String>,
    pub allowlist: Networks,
    pub expires_at: Option<Timestamp>,
    /// By mode if none: `test` or `standard`.
    pub tier: Option<String>,
    /// A person has acknowledged that elevated scopes are granted.
    pub acknowledge_elevated: bool,
    /// A person has waived the expiry that the migration preset wants.
    pub waive_expiry: bool,
}

/// A key of another system, known by its digest alone.
#[derive(Clone, Debug)]
pub struct ImportKey {
    pub new: NewKey,
    pub digest: Digest,
}

/// What to change; what is none stays.
#[derive(Clone, Debug, Default)]
pub struct UpdateKey {
    pub name: Option<String>,
    pub scopes: Option<Vec<String>>,
    pub allowlist: Option<Networks>,
    pub tier: Option<String>,
    pub acknowledge_elevated: bool,
}

/// A key that was made. Its text exists here, once, and nowhere else.
#[derive(Debug)]
pub struct Created {
    pub record: KeyRecord,
    pub text: Secret<String>,
    pub warnings: Vec<String>,
}

impl Default for NewKey {
    fn default() -> Self {
        Self {
            entity: String::new(),
            name: String::new(),
            mode: Mode::Test,
            scopes: Vec::new(),
            preset: None,
            allowlist: Networks::default(),
            expires_at: None,
            tier: None,
            acknowledge_elevated: false,
            waive_expiry: false,
        }
    }
}

impl Manage<'_> {
    /// Makes a key.
    ///
    /// # Errors
    /// [`ManageError`]: what was asked for is not allowed, the entity is not there, or the store refused.
    pub fn create_key(&self, new: NewKey) -> Result<Created, ManageError> {
        let entity = self.entity(&new.entity)?;
        let token = Token::generate(&self.settings.prefix, new.mode, &entity.code)?;
        let mut record = self.new_record(&new, entity.id, token.digest)?;
        record.last4 = token.last4;
        let warnings = self.settings.warnings(&record.scopes, &record.allowlist);
        let record = self.insert(record, Action::KeyCreated)?;
        Ok(Created { record, text: token.text, warnings })
    }

    /// Stores a key that another system made.
    ///
    /// # Errors
    /// As [`Manage::create_key`]; also when a key with this digest exists, even a revoked one.
    pub fn import_key(&self, import: &ImportKey) -> Result<(KeyRecord, Vec<String>), ManageError> {
        let entity = self.entity(&import.new.entity)?;
        let mut record = self.new_record(&import.new, entity.id, import.digest)?;
        record.imported = true;
        let warnings = self.settings.warnings(&record.scopes, &record.allowlist);
        Ok((self.insert(record, Action::KeyImported)?, warnings))
    }

    /// All keys, or those of one entity, in the order they were made.
    ///
    /// # Errors
    /// The store's.
    pub fn keys(&self, entity: Option<EntityId>) -> Result<Vec<KeyRecord>, ManageError> {
        let filter = KeyFilter { entity };
        let mut keys: Vec<KeyRecord> = Vec::new();
        loop {
            let page = self.store.keys(&filter, keys.last().map(|key| key.id), PAGE)?;
            let last = page.len() < PAGE;
            keys.extend(page);
            if last {
                return Ok(keys);
            }
        }
    }

    /// Changes a key that is in force. Narrowing and widening are the same step.
    ///
    /// # Errors
    /// [`ManageError::Invalid`] when nothing would change, or the key has ended; as [`Manage::create_key`] otherwise.
    pub fn update_key(&self, id: KeyId, update: &UpdateKey) -> Result<(KeyRecord, Vec<String>), ManageError> {
        self.retry(|| {
            let before = self.key(id)?;
            super::rotate::check_in_force(&before, self.clock.now())?;
            let record = self.updated(&before, update)?;
            if record == before {
                return Err(invalid("nothing to change: give --name, --scope, --allow or --tier"));
            }
            let warnings = self.settings.warnings(&record.scopes, &record.allowlist);
            let record = self.replace(record, before.version, Action::KeyUpdated)?;
            Ok((record, warnings))
        })
    }

    fn updated(&self, before: &KeyRecord, update: &UpdateKey) -> Result<KeyRecord, ManageError> {
        let mut record = before.clone();
        if let Some(name) = &update.name {
            check_name(name)?;
            record.name.clone_from(name);
        }
        if let Some(scopes) = &update.scopes {
            record.scopes = self.settings.scopes(scopes, None, update.acknowledge_elevated)?;
        }
        if let Some(allowlist) = &update.allowlist {
            record.allowlist = allowlist.clone();
        }
        if let Some(tier) = &update.tier {
            self.settings.check_tier(tier)?;
            record.tier.clone_from(tier);
        }
        Ok(record)
    }

    fn new_record(&self, new: &NewKey, entity_id: EntityId, digest: Digest) -> Result<KeyRecord, ManageError> {
        check_name(&new.name)?;
        let now = self.clock.now();
        if new.expires_at.is_some_and(|end| end <= now) {
            return Err(invalid("the expiry is in the past"));
        }
        self.settings.check_preset_expiry(new.preset.as_deref(), new.expires_at.is_some(), new.waive_expiry)?;
        let scopes = self.settings.scopes(&new.scopes, new.preset.as_deref(), new.acknowledge_elevated)?;
        let tier = new.tier.clone().unwrap_or_else(|| default_tier(new.mode).to_owned());
        self.settings.check_tier(&tier)?;
        Ok(KeyRecord {
            id: self.new_id()?,
            version: 0,
            digest,
            entity_id,
            name: new.name.clone(),
            mode: new.mode,
            scopes,
            allowlist: new.allowlist.clone(),
            tier,
            api_version: self.settings.api_version.clone(),
            last4: String::new(),
            imported: false,
            created_at: now,
            expires_at: new.expires_at,
            revoked_at: None,
            rotated_to: None,
            rotated_from: None,
            until_quiet: None,
        })
    }

    pub(super) fn new_id(&self) -> Result<KeyId, ManageError> {
        let mut random = [0; 16];
        getrandom::fill(&mut random)?;
        Ok(KeyId::new(Ulid::new(self.clock.now(), u128::from_be_bytes(random))))
    }

    fn insert(&self, record: KeyRecord, action: Action) -> Result<KeyRecord, ManageError> {
        self.write(record, None, action)
    }

    pub(super) fn replace(&self, record: KeyRecord, version: u64, action: Action) -> Result<KeyRecord, ManageError> {
        self.write(record, Some(version), action)
    }

    fn write(&self, mut record: KeyRecord, expected: Option<u64>, action: Action) -> Result<KeyRecord, ManageError> {
        let seqs = self.apply(vec![Write { action, expected, record: Record::Key(record.clone()) }])?;
        record.version = seqs.first().copied().unwrap_or_default();
        Ok(record)
    }
}

const fn default_tier(mode: Mode) -> &'static str {
    match mode {
        Mode::Test => "test",
        Mode::Live => "standard",
    }
}

/// Names are shown in tables and logs: one line, not empty, not endless.
pub(super) fn check_name(name: &str) -> Result<(), ManageError> {
    if name.trim().is_empty() || name.chars().count() > NAME_MAX || name.chars().any(char::is_control) {
        return Err(invalid(&format!("a name has 1 to {NAME_MAX} characters and no control characters")));
    }
    Ok(())
}
