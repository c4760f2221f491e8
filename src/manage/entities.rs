//! Entities: create, list, delete.

use super::{Manage, ManageError};
use crate::key::entity::is_code;
use crate::key::{EntityId, EntityRecord};
use crate::store::{Action, Record, Write};

/// An entity to make.
#[derive(Clone, Debug, Default)]
pub struct NewEntity {
    /// `[a-z0-9]{2,16}`.
    pub code: String,
    /// The ERP's own id of the tenant; a new one if none.
    pub id: Option<EntityId>,
    /// The code if none.
    pub name: Option<String>,
}

impl Manage<'_> {
    /// Makes an entity.
    ///
    /// # Errors
    /// [`ManageError::Invalid`] for a bad code or name; the store's, when the code or the id is taken.
    pub fn create_entity(&self, new: NewEntity) -> Result<EntityRecord, ManageError> {
        if !is_code(&new.code) {
            return Err(ManageError::Invalid(format!(
                "'{}' is not a code: use 2 to 16 characters of a-z and 0-9",
                new.code
            )));
        }
        let name = new.name.unwrap_or_else(|| new.code.clone());
        super::keys::check_name(&name)?;
        let mut entity = EntityRecord {
            id: new.id.unwrap_or_else(EntityId::random),
            version: 0,
            code: new.code,
            name,
            created_at: self.clock.now(),
            deleted_at: None,
        };
        let record = Record::Entity(entity.clone());
        let seqs = self.apply(vec![Write { action: Action::EntityCreated, expected: None, record }])?;
        entity.version = seqs.first().copied().unwrap_or_default();
        Ok(entity)
    }

    /// The live entities, by code.
    ///
    /// # Errors
    /// The store's.
    pub fn entities(&self) -> Result<Vec<EntityRecord>, ManageError> {
        let mut entities = self.store.entities()?;
        entities.retain(|entity| entity.deleted_at.is_none());
        Ok(entities)
    }

    /// Deletes an entity, for good: every key of it ends at once.
    ///
    /// # Errors
    /// [`ManageError::NotFound`], or the store's.
    pub fn delete_entity(&self, code: &str) -> Result<EntityRecord, ManageError> {
        self.retry(|| {
            let mut entity = self.entity(code)?;
            let expected = Some(entity.version);
            entity.deleted_at = Some(self.clock.now());
            let record = Record::Entity(entity.clone());
            let seqs = self.apply(vec![Write { action: Action::EntityDeleted, expected, record }])?;
            entity.version = seqs.first().copied().unwrap_or_default();
            Ok(entity)
        })
    }
}
