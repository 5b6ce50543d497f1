//! Things by number, with numbers used again.

/// Things by number.
#[derive(Debug)]
pub(super) struct Slab<T> {
    items: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            free: Vec::new(),
        }
    }
}

/// A number as a place in a list.
pub(super) fn at(id: u32) -> usize {
    usize::try_from(id).unwrap_or(usize::MAX)
}

impl<T> Slab<T> {
    /// Keeps a thing. The number is `u32::MAX` and the thing is gone when there are that many, which no memory holds.
    pub(super) fn insert(&mut self, item: T) -> u32 {
        if let Some(id) = self.free.pop()
            && let Some(slot) = self.items.get_mut(at(id))
        {
            *slot = Some(item);
            return id;
        }
        let Ok(id) = u32::try_from(self.items.len()) else {
            return u32::MAX;
        };
        self.items.push(Some(item));
        id
    }

    /// Gives a thing back.
    pub(super) fn remove(&mut self, id: u32) -> Option<T> {
        let item = self.items.get_mut(at(id))?.take()?;
        self.free.push(id);
        Some(item)
    }

    /// Looks at a thing.
    pub(super) fn get(&self, id: u32) -> Option<&T> {
        self.items.get(at(id))?.as_ref()
    }

    /// Changes a thing.
    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        self.items.get_mut(at(id))?.as_mut()
    }

    /// How many there are.
    pub(super) const fn len(&self) -> usize {
        self.items.len().saturating_sub(self.free.len())
    }

    /// All, by number.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..)
            .zip(&self.items)
            .filter_map(|(id, item)| Some((id, item.as_ref()?)))
    }

    /// Room taken by the lists themselves, bytes.
    pub(super) const fn bytes(&self) -> usize {
        self.items
            .capacity()
            .saturating_mul(size_of::<Option<T>>())
            .saturating_add(self.free.capacity().saturating_mul(4))
    }
}
