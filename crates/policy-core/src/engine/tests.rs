mod adoption;
mod judgement;
mod kernel;
mod order;
mod random;
mod refusals;
mod world;
