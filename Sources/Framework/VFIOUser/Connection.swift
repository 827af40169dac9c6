// SPDX-License-Identifier: Apache-2.0

public import Logging
public import Platform
public import SystemPackage

/// One client on one socket: bytes and descriptors become messages, messages are answered.
///
/// It watches its socket on the event loop and answers by itself. The device reaches guest memory
/// that has no descriptor through ``readMemory(into:at:)`` and ``writeMemory(_:at:)``.
@safe
public final class Connection {
    /// Why a connection ended.
    public enum End: Equatable, Sendable {
        /// The client closed it, or died.
        case clientLeft
        /// The client broke the protocol in a way after which the stream means nothing.
        case protocolViolation(String)
        /// The client no longer reads what it is sent.
        case clientStoppedReading
        /// The socket failed.
        case failed(Errno)
        /// ``close()``.
        case closedByServer
    }

    /// Serves `device` to the client at the other end of `socket`, a connected stream socket.
    ///
    /// - Parameter ended: called once, on the loop, never from within another function of this
    ///   class. Then the socket is closed, and the device still has the client's memory and eventfds.
    public init(
        socket: consuming Descriptor, device: any VFIODevice, loop: any EventLoop, logger: Logger,
        whenEnded ended: @escaping (End) -> Void
    ) throws(Errno) {}

    /// Whether the client answers requests for guest memory that it gave without a descriptor.
    public var servesMemory: Bool { false }

    /// Closes the socket. The end is told on the loop afterwards.
    public func close() {}

    /// Reads guest memory by asking the client, and waits for the answer, serving the client's
    /// requests meanwhile.
    ///
    /// - Throws: `ENOTSUP` if the client serves no memory, `ETIMEDOUT` if it does not answer,
    ///   `ECANCELED` if it asked for something that can only be done when the device has come to
    ///   rest, `ENOTCONN` if it is gone, or the errno with which it refused.
    public func readMemory(
        into bytes: UnsafeMutableRawBufferPointer, at address: UInt64
    ) throws(Errno) { throw .notSupported }

    /// Writes guest memory by asking the client; otherwise like ``readMemory(into:at:)``.
    public func writeMemory(
        _ bytes: UnsafeRawBufferPointer, at address: UInt64
    ) throws(Errno) { throw .notSupported }
}
