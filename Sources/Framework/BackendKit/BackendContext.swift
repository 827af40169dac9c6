// SPDX-License-Identifier: Apache-2.0

public import Logging
public import Platform

/// The services that the program lends to a backend for its lifetime.
public struct BackendContext {
    /// The event loop, which runs everything on one thread.
    public let loop: any EventLoop
    /// The program's log.
    public let logger: Logger
    /// The file or device node that the specification names, opened by the client that asked for the
    /// device; `nil` if the backend must open it.
    ///
    /// A backend that takes the descriptor opens nothing itself.
    public let descriptor: ReceivedDescriptor?
    /// Whether the loop is running.
    ///
    /// A backend's initializer must not block then, and the backend is started by
    /// ``DeviceBackend/start(on:completion:)``.
    public let isServing: Bool
    /// The resources that the backends of the program share.
    public let resources: SharedResources

    /// Creates a context.
    ///
    /// - Parameters:
    ///   - loop: the event loop.
    ///   - logger: the program's log.
    ///   - descriptor: what the specification names, if a client has opened it.
    ///   - isServing: whether the loop is running.
    ///   - resources: those of the program; by default the backend shares nothing.
    public init(
        loop: any EventLoop, logger: Logger, descriptor: ReceivedDescriptor? = nil,
        isServing: Bool = false, resources: SharedResources = SharedResources()
    ) {
        self.loop = loop
        self.logger = logger
        self.descriptor = descriptor
        self.isServing = isServing
        self.resources = resources
    }
}
