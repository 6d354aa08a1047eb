//! The blocking client's calls that store from regions and retrieve into them.

use super::blocking::{Client, unless_missing, whole};
use super::error::ClientError;
use super::pipeline::Connector;
use super::request::{NamespaceId, Request, RetrieveIntoItem, StoreFromItem};
use crate::Status;
use crate::region::{Fragment, Region};

/// What came of a value, into a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Came {
    /// Bytes of the whole value.
    pub value_bytes: u64,
    /// Bytes that came: so much of the fragments is filled.
    pub length: u32,
    /// Nobody has checked them, since no processor sees where they are: the CRC32C that they should have.
    pub unchecked_crc: Option<u32>,
}

impl<C: Connector> Client<C> {
    /// Stores what is in `fragments` under `key`; see [`Request::store_from`].
    ///
    /// # Errors
    /// [`ClientError`]. After a timeout the server may still use the region
    /// ([`Region::is_idle`], [`Client::reclaim`]).
    pub fn store_from(
        &mut self,
        namespace: NamespaceId,
        key: &[u8],
        fragments: &[Fragment],
    ) -> Result<(), ClientError> {
        let done = self.done("store", key, Request::store_from(namespace, key, fragments))?;
        self.pipeline().recycle(done);
        Ok(())
    }

    /// Fills `fragments` with the value of `key` from `offset` on; see [`Request::retrieve_into`]. `None`
    /// if there is no such key.
    ///
    /// # Errors
    /// [`ClientError`]: the fragments may hold garbage then. After a timeout the server may still write to
    /// them ([`Region::is_idle`], [`Client::reclaim`]).
    pub fn retrieve_into(
        &mut self,
        namespace: NamespaceId,
        key: &[u8],
        offset: u64,
        fragments: &[Fragment],
    ) -> Result<Option<Came>, ClientError> {
        let request = Request::retrieve_into(namespace, key, offset, fragments);
        let Some(done) = unless_missing(self.done("retrieve", key, request))? else {
            return Ok(None);
        };
        let (value_bytes, length, unchecked_crc) = (done.result, done.length, done.unchecked_crc);
        self.pipeline().recycle(done);
        Ok(Some(Came { value_bytes, length, unchecked_crc }))
    }

    /// Stores many values out of regions; how each ended, in the same order.
    ///
    /// # Errors
    /// [`ClientError`], if the batch as a whole could not be asked.
    pub fn store_batch_from(
        &mut self,
        namespace: NamespaceId,
        items: &[StoreFromItem<'_>],
    ) -> Result<Vec<Status>, ClientError> {
        let done = self.pipeline().call(Request::store_batch_from(namespace, items))?;
        let statuses = whole(&done, items.len())?.iter().map(|item| item.status).collect();
        self.pipeline().recycle(done);
        Ok(statuses)
    }

    /// Retrieves many values or ranges into regions; what came of each or how it ended, in the same order.
    ///
    /// # Errors
    /// [`ClientError`], if the batch as a whole could not be asked.
    pub fn retrieve_batch_into(
        &mut self,
        namespace: NamespaceId,
        items: &[RetrieveIntoItem<'_>],
    ) -> Result<Vec<Result<Came, Status>>, ClientError> {
        let done = self.pipeline().call(Request::retrieve_batch_into(namespace, items))?;
        let found = whole(&done, items.len())?.iter().map(|item| match item.status {
            Status::Ok => Ok(Came {
                value_bytes: item.result,
                length: item.length,
                unchecked_crc: item.unchecked_crc,
            }),
            status => Err(status),
        });
        let found = found.collect();
        self.pipeline().recycle(done);
        Ok(found)
    }

    /// [`super::Pipeline::register`].
    ///
    /// # Errors
    /// [`ClientError::Region`].
    pub fn register(&mut self, region: &Region) -> Result<(), ClientError> {
        self.pipeline().register(region)
    }

    /// [`super::Pipeline::reclaim`].
    pub fn reclaim(&mut self, region: &Region) -> bool {
        self.pipeline().reclaim(region)
    }
}
