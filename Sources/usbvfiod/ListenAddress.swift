// SPDX-License-Identifier: Apache-2.0

internal import ArgumentParser
internal import Glibc
internal import Platform
internal import SystemPackage

/// The socket of the VMM: a path, an inherited descriptor, or one from systemd.
enum ListenAddress {
    case path(String)
    case descriptor(CInt)

    /// An open socket.
    enum Socket: ~Copyable {
        case listening(ListeningSocket)
        case connected(OwnedDescriptor)
    }

    /// The first descriptor that systemd passes (`sd_listen_fds(3)`).
    private static let firstActivated: CInt = 3

    /// Reads the options and the environment.
    ///
    /// - Throws: an error of the command line.
    init(path: String?, descriptor: CInt?) throws {
        switch (path, descriptor) {
        case (_?, _?):
            throw ValidationError("--socket-path and --fd exclude each other: give one of them.")
        case (let path?, nil):
            guard !path.isEmpty else { throw ValidationError("--socket-path needs a path.") }
            self = .path(absolute(path))
        case (nil, let number?):
            guard number >= 0 else { throw ValidationError("--fd needs a number from 0 on.") }
            self = .descriptor(number)
        case (nil, nil):
            guard let count = Self.activatedSockets() else {
                throw ValidationError(
                    "no socket for clients: give --socket-path PATH, "
                        + "for example: usbvfiod --socket-path /tmp/usbvfiod-socket")
            }
            guard count == 1 else {
                throw ValidationError("systemd passed \(count) sockets; one is needed.")
            }
            self = .descriptor(Self.firstActivated)
        }
    }

    /// Opens the socket, or takes ownership of the inherited one.
    func open() throws -> Socket {
        switch self {
        case .path(let path): return .listening(try Self.listen(at: path))
        case .descriptor(let number):
            guard fcntl(number, F_GETFD) >= 0 else {
                throw Failure(description: "there is no open descriptor \(number)")
            }
            _ = fcntl(number, F_SETFD, FD_CLOEXEC)
            let socket = OwnedDescriptor(owning: number)
            let isListening = socket.isListeningSocket
            switch isListening {
            case true?: return .listening(try ListeningSocket(adopting: socket))
            case false?: return .connected(socket)
            case nil:
                throw Failure(description: "descriptor \(number) is not a UNIX stream socket")
            }
        }
    }

    /// Listens at a path.
    ///
    /// - Throws: a ``Failure`` with what is wrong and what to do.
    static func listen(
        at path: String, permissions: FilePermissions? = nil
    ) throws -> ListeningSocket {
        do throws(ListeningSocket.BindError) {
            return try ListeningSocket(bindingTo: path, permissions: permissions)
        } catch {
            throw Failure(description: explain(error, path))
        }
    }

    /// The number of sockets that systemd passed to this process.
    private static func activatedSockets() -> Int? {
        guard environment("LISTEN_PID") == String(getpid()),
            let count = environment("LISTEN_FDS").flatMap({ Int($0) }), count > 0
        else { return nil }
        return count
    }

    private static func environment(_ name: String) -> String? {
        guard let value = unsafe getenv(name) else { return nil }
        return unsafe String(cString: value)
    }

    private static func explain(_ error: ListeningSocket.BindError, _ path: String) -> String {
        switch error {
        case .inUse: "another server listens at '\(path)': end it, or choose another path"
        case .notASocket: "'\(path)' exists and is not a socket: remove it, or choose another path"
        case .failed(.fileNameTooLong): "'\(path)' is too long for a socket: 107 bytes at most"
        case .failed(let error): "cannot listen at '\(path)': \(error)\(remedy(error))"
        }
    }
}

/// Returns a path that is valid in every working directory.
func absolute(_ path: String) -> String {
    let path = FilePath(path)
    guard path.isRelative, let folder = unsafe getcwd(nil, 0) else { return path.string }
    defer { unsafe free(folder) }
    return unsafe FilePath(String(cString: folder)).pushing(path).lexicallyNormalized().string
}
