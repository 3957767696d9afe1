import type { BackendOwner } from './expectation.js';

/** For a connection whose client has gone. */
export const SILENT_OWNER: BackendOwner = {
  onReply() {
    // nobody reads it
  },
  onData() {
    // nobody reads it
  },
  onCopyIn() {
    // the connection is about to be closed
  },
  onReady() {
    // whoever runs the statement waits for its own promise
  },
  onLost() {
    // its statement's promise has been rejected
  },
  onWritable() {
    // nothing more to write
  },
};
