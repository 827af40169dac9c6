// SPDX-License-Identifier: Apache-2.0

internal import BackendKit
internal import Logging
internal import Platform
internal import USB

/// Selection of the device that a rule matches, while devices connect and disconnect.
extension HostBackend {
    // MARK: - Connection

    /// Looks for a device that the rule matches, unless one is selected.
    ///
    /// The kernel may still be busy with a new device, so names are read and nodes are opened by
    /// ``jobs``.
    func probe() {
        guard bus != nil, current == nil else { return }
        if isProbing {
            needsReprobe = true
            return
        }
        let names = candidates().map { HostDeviceName(withoutStrings: $0) }
        guard !names.isEmpty else { return completeStartWithoutDevice() }
        isProbing = true
        jobs.run {
            names.map { name in
                SystemFiles.waitForDrivers(of: name.node)
                return name.addingStrings()
            }
        } completion: { [weak self] names in
            self?.select(from: names)
        }
    }

    private func candidates() -> [LibUSBDevice] {
        context.devices().filter { device in
            !device.isHub && rule.mayMatch(HostDeviceName(withoutStrings: device))
                && !closing.contains { $0.node.id == device.id }
        }
    }

    private func select(from names: [HostDeviceName]) {
        isProbing = false
        guard bus != nil else { return }
        let matching = names.filter { rule.matches($0) }
        // Devices may have been connected and disconnected meanwhile.
        let present = candidates().compactMap { node in
            matching.first { $0.bus == node.bus && $0.address == node.address }.map { (node, $0) }
        }
        if matching.count > 1 && startCompletion != nil {
            fail(Diagnosis.ambiguous(rule, candidates: matching))
        } else if present.isEmpty {
            completeStartWithoutDevice()
        } else {
            openFirst(of: present)
        }
        reprobeIfNeeded()
    }

    private func reprobeIfNeeded() {
        guard needsReprobe, !isProbing else { return }
        needsReprobe = false
        probe()
    }

    /// Opens the first device that can be opened: other programs or rules may have some of them.
    private func openFirst(of present: [(node: LibUSBDevice, name: HostDeviceName)]) {
        isProbing = true
        let choices = present.map { (opener: $0.node.opener, name: $0.name) }
        jobs.run {
            FirstOpened(of: choices) { choice throws(OpeningError) in
                try HostDeviceSession.open(choice.opener, name: choice.name)
            }
        } completion: { [weak self] first in
            guard let self else { return }
            isProbing = false
            // This closure keeps the references that the openers need.
            let (node, name) = present[first.index]
            if present.count > 1, case .success = first.result {
                logger.notice("\(rule) matches \(present.count) devices; taking \(name.portRule)")
            }
            deviceOpened(node, name, first.result)
            reprobeIfNeeded()
        }
    }

    private func deviceOpened(
        _ node: LibUSBDevice, _ name: HostDeviceName,
        _ result: Result<LibUSBHandle.Opened, OpeningError>
    ) {
        do throws(OpeningError) {
            let opened = try result.get()
            guard bus != nil, current == nil else { return opened.pointer.close() }
            // A disconnection until now was not observed, because the device was not selected yet.
            guard context.has(node) else {
                opened.pointer.close()
                return reportDisconnection(of: name)
            }
            do throws(BackendError) { claim(try makeSession(node, name, opened)) } catch {
                fail(error)
            }
        } catch {
            guard bus != nil else { return }
            openingAttempts += 1
            let isAccessMissing = error == .failed(.access) && startCompletion == nil
            if isAccessMissing, openingAttempts < Self.accessAttempts {
                probeTimer = loop.schedule(at: loop.now + Self.accessRetryDelay) { [weak self] in
                    self?.probe()
                }
            } else {
                fail(Diagnosis.cannotOpen(name, error))
            }
        }
    }

    /// Takes over a device that another process has opened, without blocking the loop.
    func adoptLater(_ descriptor: consuming OwnedDescriptor) {
        isProbing = true
        let number = descriptor.rawValue
        let received = ReceivedDescriptor(descriptor)
        let wrapper = context.wrapper
        jobs.run {
            Result { () throws(LibUSBError) in try wrapper.wrap(number) }
        } completion: { [weak self] result in
            guard let self else { return }
            do throws(LibUSBError) {
                let pointer = try result.get()
                guard let node = context.device(of: pointer) else {
                    pointer.close()
                    throw .noDevice
                }
                lock(node, isListed: context.has(node), pointer, number, received)
            } catch {
                isProbing = false
                fail(Diagnosis.notANode(rule, error))
            }
        }
    }

    /// - Parameter isListed: whether the device is in libusb's own list, so that its disconnection is
    ///   reported.
    private func lock(
        _ node: LibUSBDevice, isListed: Bool, _ pointer: LibUSBHandle.Pointer, _ number: CInt,
        _ received: ReceivedDescriptor
    ) {
        let name = HostDeviceName(withoutStrings: node)
        jobs.run {
            (name.addingStrings(), ReceivedNode(number, path: name.node))
        } completion: { [weak self] name, receivedNode in
            guard let self else { return }
            isProbing = false
            guard bus != nil else { return pointer.close() }
            guard !isListed || context.has(node) else {
                pointer.close()
                return reportDisconnection(of: name)
            }
            do throws(BackendError) {
                claim(try adopt(node, name, pointer, receivedNode, received))
            } catch {
                fail(error)
            }
        }
    }

    private func claim(_ session: HostDeviceSession) {
        current = session
        session.claim { [weak self] result in
            guard let self, current === session else { return }
            do throws(BackendError) {
                guard let bus else { return }
                try attach(session, to: bus, problems: result.get())
                let name = session.name
                logger.notice(
                    "\(rule): \(name.specification) (\(name.displayName)) is plugged in")
                completeStart()
            } catch {
                current = nil
                fail(error, closing: session)
                // There may be another device, whose interfaces can be claimed.
                probe()
            }
        }
    }

    /// Attaches a device whose interfaces are claimed, except those that have problems.
    func attach(
        _ session: HostDeviceSession, to bus: any USBBus, problems: [String]
    ) throws(BackendError) {
        let specification = session.name.specification
        for problem in problems {
            logger.warning("\(specification): \(problem); the guest cannot use it")
        }
        if let limit = session.device.descriptorFilter.streamLimit {
            logger.warning("\(specification): \(limit.warning)")
        }
        session.device.whenDisconnected = { [weak self, weak session] in
            if let self, let session { sessionDisconnected(session) }
        }
        do throws(AttachError) {
            try bus.attach(session.device)
        } catch {
            throw BackendError(cannotAttach: specification, error)
        }
        isAttached = true
    }

    // MARK: - Disconnection

    /// Keeps a former device until it is closed and disconnected.
    func keepUntilClosed(_ session: HostDeviceSession) {
        closing.append(session)
        session.whenClosed = { [weak self] in self?.removeDisconnected() }
    }

    /// Closes a device whose transfers failed as if it had been disconnected, although it is still
    /// connected: the kernel ends transfers so when it releases their interface. After a moment the
    /// device may be selected again.
    private func closeForReturn(_ session: HostDeviceSession) {
        closing.append(session)
        session.whenClosed = { [weak self, weak session] in
            guard let self else { return }
            removeDisconnected()
            guard rule.isPersistent, bus != nil else { return }
            returnTimer = loop.schedule(at: loop.now + Self.accessRetryDelay) { [weak self] in
                self?.closing.removeAll { $0 === session }
                self?.probe()
            }
        }
        session.shutDown { _ in }
    }

    private func removeDisconnected() {
        guard closing.contains(where: \.isClosed) else { return }
        closing.removeAll { $0.isClosed && !context.has($0.node) }
    }

    /// The device that the rule had selected is disconnected.
    private func sessionDisconnected(_ session: HostDeviceSession) {
        guard session === current else { return }
        current = nil
        isAttached = false
        if context.has(session.node) {
            closeForReturn(session)
        } else {
            keepUntilClosed(session)
            session.closeWhenIdle()
        }
        reportDisconnection(of: session.name)
    }

    private func reportDisconnection(of device: HostDeviceName) {
        let name = "\(device.specification) (\(device.displayName))"
        guard rule.isPersistent else {
            if startCompletion != nil { return fail(BackendError("\(name) is gone")) }
            logger.warning("\(name) is gone")
            return
        }
        logger.warning("\(name) is gone; \(rule) waits for it to come back")
        // Its successor may be connected already.
        probeTimer = loop.schedule(at: loop.now) { [weak self] in self?.probe() }
        completeStart()
    }
}

extension HostBackend: LibUSBContextObserver {
    func devicesConnected() {
        guard rule.isPersistent else { return }
        openingAttempts = 0
        probe()
    }

    func deviceDisconnected(_ device: LibUSBDevice.ID) {
        if let current, current.node.id == device {
            if isAttached {
                current.device.deviceDisconnected()
            } else {
                sessionDisconnected(current)
            }
        }
        removeDisconnected()
    }
}

/// The first of several devices that can be opened, or why none can.
struct FirstOpened<Opened: Sendable>: Sendable {
    let index: Int
    let result: Result<Opened, OpeningError>

    /// - Parameter choices: at least one.
    init<Choice>(
        of choices: [Choice], opening: (Choice) throws(OpeningError) -> Opened
    ) {
        var failures: [(index: Int, error: OpeningError)] = []
        for (index, choice) in choices.enumerated() {
            do throws(OpeningError) {
                result = .success(try opening(choice))
                self.index = index
                return
            } catch {
                failures.append((index, error))
            }
        }
        // udev may still permit the access; a lock is kept.
        let failure = failures.first { $0.error == .failed(.access) } ?? failures[0]
        (index, result) = (failure.index, .failure(failure.error))
    }
}
