// SPDX-License-Identifier: Apache-2.0

public import Logging
public import Platform

/// The services that the program provides to a backend for the backend's lifetime.
public struct BackendContext {
    /// The event loop, which runs everything on one thread.
    public let loop: any EventLoop
    /// The program's log.
    public let logger: Logger
    /// The file or device node that the specification names, opened by the client that asked for
    /// the device; `nil` if the backend must open it.
    ///
    /// A backend that takes the descriptor opens nothing itself.
    public let descriptor: ReceivedDescriptor?
    /// Whether the loop is running.
    ///
    /// If so, the backend's initializer must not block, and ``DeviceBackend/start(on:completion:)``
    /// starts the backend.
    public let isServing: Bool
    /// The resources that the backends of the program share.
    public let resources: SharedResources

    /// Creates a context.
    ///
    /// - Parameters:
    ///   - loop: the event loop.
    ///   - logger: the program's log.
    ///   - descriptor: the file or device node that the specification names, if a client has opened
    ///     it.
    ///   - isServing: whether the loop is running.
    ///   - resources: the program's shared resources; by default the backend shares nothing.
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
